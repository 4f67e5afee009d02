"""Tools of the bundled world: schemas, and an environment that executes them on the generated facts."""

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pact_lightning.environments.protocol import ToolResult
from pact_lightning.tasks.bundled.world import (
    BY_TOOL,
    COMBINATIONS,
    PROFESSIONS,
    PROFILE_FIELDS,
    World,
    check_split,
    generate_world,
)
from pact_lightning.types.prompt import PromptView, ToolSchema


def _schema(name: str, description: str, arguments: Mapping[str, str]) -> dict[str, Any]:
    properties = {argument: {"type": kind} for argument, kind in arguments.items()}
    parameters = {"type": "object", "properties": properties, "required": list(arguments)}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


def _schemas() -> dict[str, dict[str, Any]]:
    schemas = {}
    for tool, relations in BY_TOOL.items():
        relation = relations[0]
        arguments = {relation.source: "string"} | ({"year": "integer"} if relation.year else {})
        words = tool.removesuffix("_of").replace("_", " ")
        article = "an" if relation.source == "organisation" else "a"
        schemas[tool] = _schema(tool, f"The {words} of {article} {relation.source}.", arguments)
    schemas["find_person"] = _schema(
        "find_person", "A person by last name and profession.", {"name": "string", "profession": "string"}
    )
    schemas["profile_of"] = _schema(
        "profile_of", "The birthplace, employer and spouse of a person.", {"person": "string"}
    )
    numbers = {"a": "integer", "b": "integer"}
    schemas["add"] = _schema("add", "The sum of two numbers.", numbers)
    schemas["subtract"] = _schema("subtract", "The difference of two numbers.", numbers)
    schemas["larger"] = _schema("larger", "The larger of two numbers.", numbers)
    return schemas


TOOL_SCHEMAS: dict[str, dict[str, Any]] = _schemas()


class ArgumentError(Exception):
    """Refusal of a call; the policy reads the payload."""

    def __init__(self, **payload: Any) -> None:
        super().__init__(str(payload))
        self.payload = payload


class BundledWorld:
    """Environment of one bundled task: its tools run on the facts of the world of (split, index).

    Nothing is looked up in the task: any tool may be called with any arguments, on the whole world.

    Args:
        split: The task's split.
        index: The task's number within the split.
    """

    def __init__(self, split: str, index: int) -> None:
        check_split(split)
        self._split = split
        self._index = index
        self._world: World | None = None
        self._tools: tuple[ToolSchema, ...] = ()

    @property
    def tools(self) -> Sequence[ToolSchema]:
        """Schemas of the tools that the task offers."""
        return self._tools

    def reset(self, task: PromptView, seed: int) -> None:
        """Make the world anew; it depends on (split, index) only, so ``seed`` changes nothing."""
        del seed
        self._world = generate_world(self._split, self._index)
        self._tools = task.tools

    def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run one tool; a refusal says what is wrong and, where it can, what would be right.

        Raises:
            RuntimeError: ``reset`` was not called first.
        """
        if self._world is None:
            raise RuntimeError("call reset(task, seed) before call(name, arguments)")
        offered = {tool["function"]["name"] for tool in self._tools}
        try:
            if name not in offered:
                raise ArgumentError(error="unknown tool")
            _check_arguments(TOOL_SCHEMAS[name], arguments)
            payload = _run(self._world, name, arguments)
        except ArgumentError as error:
            return ToolResult(json.dumps(error.payload), error=True)
        return ToolResult(json.dumps(payload))


def _check_arguments(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    parameters = schema["function"]["parameters"]
    for argument in parameters["required"]:
        if argument not in arguments:
            raise ArgumentError(error="missing argument", argument=argument)
    for argument, value in arguments.items():
        if argument not in parameters["properties"]:
            raise ArgumentError(error="unknown argument", argument=argument)
        wanted = parameters["properties"][argument]["type"]
        right = isinstance(value, str) if wanted == "string" else type(value) is int
        if not right:
            raise ArgumentError(error="wrong type", argument=argument)


def _run(world: World, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    if name in COMBINATIONS.values():
        a, b = arguments["a"], arguments["b"]
        return {"result": {"add": a + b, "subtract": abs(a - b), "larger": max(a, b)}[name]}
    if name == "find_person":
        return _find_person(world, **arguments)
    if name == "profile_of":
        person = _known(world, "person", arguments["person"])
        return {relation: world.facts[relation][person] for relation in PROFILE_FIELDS}
    relations = BY_TOOL[name]
    if relations[0].year is None:
        relation = relations[0]
    else:
        matching = [relation for relation in relations if relation.year == arguments["year"]]
        if not matching:
            raise ArgumentError(error="no census in this year")
        relation = matching[0]
    entity = _known(world, relation.source, arguments[relation.source])
    return {relation.field: world.facts[relation.phrase][entity]}


def _find_person(world: World, name: str, profession: str) -> dict[str, Any]:
    namesakes = world.namesakes(name)
    if not namesakes:
        raise ArgumentError(error="unknown name")
    if profession not in PROFESSIONS:
        raise ArgumentError(error="unknown profession")
    found = [person for person in namesakes if world.professions[person] == profession]
    if not found:
        raise ArgumentError(error="wrong profession")
    return {"person": found[0]}


def _known(world: World, kind: str, name: str) -> str:
    """Return the entity of this name, or raise a refusal that helps."""
    if name in world.entities[kind]:
        return name
    if kind == "person" and len(world.namesakes(name)) > 1:
        raise ArgumentError(error="ambiguous name", use="find_person")
    near = difflib.get_close_matches(name, world.entities[kind], n=1, cutoff=0.7)
    if near:
        raise ArgumentError(error=f"unknown {kind}", did_you_mean=near[0])
    raise ArgumentError(error=f"unknown {kind}")
