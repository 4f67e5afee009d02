"""Checks of tools' schemas, and arguments made from a schema: some that it allows, some that it forbids.

Schemas follow JSON Schema draft 2020-12. References stay within a schema: a remote one is a mistake, and is never
fetched.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.protocols import Validator
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from pact_lightning.environments.checker.findings import Finding, error, warning

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SAYS_A_TYPE = frozenset({"type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf"})
_LONGEST = 8_000

_FORM = '{"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}'


def check_schemas(tools: Sequence[Any]) -> list[Finding]:
    """Check the schemas of all tools: OpenAI format, names, JSON Schema, references, types and descriptions.

    Args:
        tools: The ``tools`` of an environment.

    Returns:
        Mistakes and how to mend them.
    """
    if not tools:
        return [error("tools", "there are none", "return the schema of at least one tool")]
    findings: list[Finding] = []
    names = []
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
            findings.append(error(f"tools[{index}]", "is not a tool in OpenAI format", f"give {_FORM}"))
            continue
        names.append(name)
        try:
            findings += _check_tool(name, tool, function)
        except RecursionError:
            findings.append(error(name, "its schema is nested too deeply to be read", "flatten it"))
    for name, times in Counter(names).items():
        if times > 1:
            findings.append(error(name, f"{times} tools have this name", "give every tool a name of its own"))
    return findings


def _check_tool(name: str, tool: Mapping[str, Any], function: Mapping[str, Any]) -> Iterator[Finding]:
    try:
        text = json.dumps(tool, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as problem:
        yield error(name, f"its schema is not JSON: {problem}", "use plain lists, dictionaries, texts and numbers")
        return
    if tool.get("type", "function") != "function":
        yield error(name, f"its `type` is {tool['type']!r}", f"give {_FORM}")
    if not _NAME.fullmatch(name):
        yield warning(
            name, "its name has other characters than letters, digits, _ and -", "most chat formats allow only these"
        )
    if not isinstance(function.get("description"), str) or not function["description"].strip():
        yield warning(name, "it has no description", "say in a sentence what it does; the policy knows nothing else")
    if len(text) > _LONGEST:
        yield warning(name, f"its schema has {len(text):,} characters", "shorten it: it stands in every prompt")
    parameters = function.get("parameters")
    if not isinstance(parameters, Mapping):
        yield error(name, "it has no `parameters`", 'give {"type": "object", "properties": {}} where it takes none')
        return
    yield from _check_parameters(name, parameters)


def _check_parameters(name: str, parameters: Mapping[str, Any]) -> Iterator[Finding]:
    try:
        Draft202012Validator.check_schema(parameters)
    except SchemaError as problem:
        where = "/".join(str(step) for step in problem.absolute_path) or "its root"
        yield error(name, f"`parameters` is no JSON Schema: {problem.message:.160} (at {where})", "see draft 2020-12")
        return
    if parameters.get("type") != "object":
        yield error(name, "`parameters` does not say `type: object`", "arguments are an object; say so at the root")
    properties = parameters.get("properties", {})
    undeclared = [entry for entry in parameters.get("required", []) if entry not in properties]
    if undeclared:
        listed = ", ".join(undeclared)
        yield error(name, f"`required` names {listed}, which `properties` does not have", "declare it or drop it")
    dead, contains_itself = _follow_references(parameters)
    for reference in dead:
        yield error(name, f"$ref {reference!r} leads nowhere", "define it under `$defs` of the same schema")
    if contains_itself:
        yield warning(name, "its schema contains itself", "unroll it: a policy is better led by a finite form")
    schemas = {argument: schema for argument, schema in properties.items() if isinstance(schema, Mapping)}
    typeless = [argument for argument, schema in schemas.items() if not _SAYS_A_TYPE & schema.keys()]
    if typeless:
        yield warning(name, f"no type is given for {', '.join(typeless)}", "add `type`, or the policy has to guess")
    silent = [argument for argument, schema in schemas.items() if not {"description", "$ref"} & schema.keys()]
    if silent:
        yield warning(name, f"no description is given for {', '.join(silent)}", "describe each argument in a few words")


def _follow_references(parameters: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Return the references that lead nowhere, and whether the schema contains itself."""
    dead: set[str] = set()
    done: set[int] = set()

    def contains_itself(schema: Any, resolver: Any, above: frozenset[int]) -> bool:
        if not isinstance(schema, Mapping) or id(schema) in done:
            return False
        if id(schema) in above:
            return True
        parts = DRAFT202012.create_resource(schema).subresources()
        inner = [(part.contents, resolver.in_subresource(part)) for part in parts]
        for reference in (schema[key] for key in ("$ref", "$dynamicRef") if isinstance(schema.get(key), str)):
            found = _lookup(resolver, reference)
            if found[0] is None:
                dead.add(reference)
            else:
                inner.append(found)
        loops = [contains_itself(part, base, above | {id(schema)}) for part, base in inner]
        done.add(id(schema))
        return any(loops)

    recursive = contains_itself(parameters, _resolver(parameters), frozenset())
    return sorted(dead), recursive


def _resolver(root: Mapping[str, Any]) -> Any:
    """Return a resolver of the references within one schema; an empty registry never fetches a remote one."""
    return Registry[Any]().resolver_with_root(DRAFT202012.create_resource(root))


def _lookup(resolver: Any, reference: str) -> tuple[Any, Any]:
    """Return the schema that a reference leads to, or ``None``, and the resolver of the references in it."""
    try:
        found = resolver.lookup(reference)
    except (Unresolvable, ValueError, TypeError, AttributeError):  # the last three: a pointer into what is no schema
        return None, resolver
    return (found.contents if isinstance(found.contents, Mapping | bool) else None), found.resolver


WORD = "zephyr"
"""Text of every free string."""

_DEEPEST = 8
_FORMATS = {
    "date": "2024-05-17", "date-time": "2024-05-17T10:30:00Z", "time": "10:30:00Z", "duration": "P1D",
    "email": "ann@example.org", "uri": "https://example.org", "uuid": "0b3a7f52-6f0c-4f0e-9a43-3f1f3f0d2c11",
    "ipv4": "192.0.2.1", "ipv6": "2001:db8::1", "hostname": "example.org",
}  # fmt: skip
# For each type, a value of another type.
_OTHER_TYPE: dict[str, Any] = {
    "string": 7, "integer": "seven", "number": "seven", "boolean": "perhaps", "array": "one", "object": "one",
    "null": "nothing",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class BadArguments:
    """Arguments that no call should have.

    Attributes:
        what: Their mistake, as the end of a sentence.
        arguments: The arguments.
        forbidden: ``True`` if the schema forbids them; most schemas allow unknown arguments.
    """

    what: str
    arguments: dict[str, Any]
    forbidden: bool = True


def good_arguments(parameters: Mapping[str, Any], word: str = WORD) -> Iterator[dict[str, Any]]:
    """Make arguments that the schema allows: the required ones only, then all of them.

    Args:
        parameters: The tool's JSON Schema.
        word: Text of strings without further constraints.

    Yields:
        Up to two sets; none where a schema asks for more than can be made up here, such as a pattern.
    """
    validator = _validator(parameters)
    made: list[dict[str, Any]] = []
    for everything in (False, True):
        arguments = _Maker(_resolver(parameters), word, everything).value(parameters, 0)
        if isinstance(arguments, dict) and arguments not in made and validator.is_valid(arguments):
            made.append(arguments)
            yield arguments


def bad_arguments(parameters: Mapping[str, Any], good: Mapping[str, Any]) -> Iterator[BadArguments]:
    """Make arguments that the schema forbids, and an unknown one whether it forbids that or not.

    Args:
        parameters: The tool's JSON Schema.
        good: Arguments that it allows.

    Yields:
        One set per required argument without it, one per argument with a value of another type, and one with an
        argument that does not exist.
    """
    validator = _validator(parameters)
    candidates = [
        BadArguments(
            f"without the required argument {name}", {key: value for key, value in good.items() if key != name}
        )
        for name in parameters.get("required", ())
    ]
    for name in good:
        kind = _kind(parameters.get("properties", {}).get(name), parameters)
        if kind in _OTHER_TYPE:
            candidates.append(BadArguments(f"with {name} of another type", {**good, name: _OTHER_TYPE[kind]}))
    yield from (candidate for candidate in candidates if not validator.is_valid(candidate.arguments))
    unknown = {**good, "no_such_argument": 1}
    yield BadArguments("with an argument that does not exist", unknown, not validator.is_valid(unknown))


def _validator(parameters: Mapping[str, Any]) -> Validator:
    return Draft202012Validator(parameters, registry=Registry())


def _kind(schema: Any, root: Mapping[str, Any]) -> str | None:
    """Return the single type that a schema names."""
    if isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str):
        schema = _lookup(_resolver(root), schema["$ref"])[0]
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    return kind if isinstance(kind, str) else None


@dataclass(frozen=True, slots=True)
class _Maker:
    resolver: Any
    word: str
    everything: bool

    def value(self, schema: Any, depth: int) -> Any:
        """Guess a value for a schema; the caller validates the whole."""
        if not isinstance(schema, Mapping) or depth > _DEEPEST:
            return None if depth > _DEEPEST else self.word
        if isinstance(schema.get("$ref"), str):
            return self.value(_lookup(self.resolver, schema["$ref"])[0], depth + 1)
        for key in ("const", "default"):
            if key in schema:
                return schema[key]
        for key in ("examples", "enum"):
            if schema.get(key):
                return schema[key][0]
        for key in ("anyOf", "oneOf"):
            if schema.get(key):
                return self.value(schema[key][0], depth + 1)
        if schema.get("allOf"):
            merged = {**schema, "allOf": None}
            for part in schema["allOf"]:
                merged |= part if isinstance(part, Mapping) else {}
            return self.value(merged, depth + 1)
        return self._of_type(schema, depth)

    def _of_type(self, schema: Mapping[str, Any], depth: int) -> Any:
        kinds = schema.get("type", "object" if "properties" in schema else "string")
        kind = kinds if isinstance(kinds, str) else kinds[0]
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        if kind in ("integer", "number"):
            return _number(schema, kind)
        if kind == "string":
            text = _FORMATS.get(str(schema.get("format")), self.word)
            text += "x" * (schema.get("minLength", 0) - len(text))
            return text[: schema.get("maxLength", len(text))]
        return {"boolean": True, "null": None}.get(kind)

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = schema.get("required", ())
        # A recursive schema may repeat itself for ever through optional fields below the top.
        names = [name for name in properties if name in required or (self.everything and depth < _DEEPEST // 2)]
        return {name: self.value(properties[name], depth + 1) for name in names}

    def _array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        first = [self.value(entry, depth + 1) for entry in schema.get("prefixItems", ())]
        wanted = max(schema.get("minItems", 0), 1 if depth < _DEEPEST // 2 and not first else 0)
        missing = min(wanted, 16) - len(first)
        return first + [self.value(schema.get("items", {}), depth + 1) for _ in range(missing)]


def _number(schema: Mapping[str, Any], kind: str) -> float | int:
    low, high = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema:
        low = schema["exclusiveMinimum"] + 1
    if "exclusiveMaximum" in schema:
        high = schema["exclusiveMaximum"] - 1
    value = 2 if low is None else max(low, 2)
    value = value if high is None else min(value, high)
    if schema.get("multipleOf"):
        value = -(-value // schema["multipleOf"]) * schema["multipleOf"]
    return int(value) if kind == "integer" else value
