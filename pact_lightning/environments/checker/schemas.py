"""Checks of tools' schemas.

Schemas follow JSON Schema draft 2020-12. References stay within a schema: a remote one is a mistake, and is never
fetched.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from pact_lightning.environments.checker.findings import Finding, error, warning
from pact_lightning.utils.errors import FAILURES, differing, named_failure
from pact_lightning.utils.json_text import JsonTextError, check_json

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SAYS_A_TYPE = frozenset({"type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf"})
_LONGEST = 8_000
_TOO_LONG = 200_000

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
        except FAILURES as problem:  # a schema is anybody's: whatever reading it raises is one finding
            findings.append(error(name, f"its schema cannot be read: {named_failure(problem)}", "write a simpler one"))
    for name, times in Counter(names).items():
        if times > 1:
            findings.append(error(name, f"{times} tools have this name", "give every tool its own name"))
    return findings


def check_task_tools(tools: Sequence[Any], offered: Sequence[Any]) -> list[Finding]:
    """Check that an environment has a task's tools, described in the same words.

    Args:
        tools: The task's tools.
        offered: The environment's.
    """
    known = {}
    for tool in offered:
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if isinstance(function, Mapping):
            known[str(function.get("name"))] = dict(tool)
    findings = []
    for tool in tools:
        name = tool["function"]["name"]
        if name not in known:
            findings.append(error(name, "the task lists it, but the environment does not", "list the tools that exist"))
        elif known[name] != dict(tool):
            own, given = (json.dumps(each, sort_keys=True, default=repr) for each in (known[name], tool))
            one, other = differing(own, given)
            problem = f"the task and the environment describe it differently: {other}, and not {one}"
            findings.append(warning(name, problem, "leave `tools` out of the task, or list the environment's own"))
    return findings


def _check_tool(name: str, tool: Mapping[str, Any], function: Mapping[str, Any]) -> Iterator[Finding]:
    try:
        check_json(tool)
    except JsonTextError as problem:
        remedy = "use plain lists, dictionaries, texts and numbers"
        yield error(name, f"its schema is not usable JSON: it {problem}", remedy)
        return
    text = json.dumps(tool)
    if len(text) > _TOO_LONG:
        yield error(name, f"its schema has {len(text):,} characters", "shorten it: it is in every prompt")
        return
    if tool.get("type", "function") != "function":
        yield error(name, f"its `type` is {tool['type']!r}", f"give {_FORM}")
    if not _NAME.fullmatch(name):
        yield warning(
            name, "its name has other characters than letters, digits, _ and -", "most chat formats allow only these"
        )
    if not isinstance(function.get("description"), str) or not function["description"].strip():
        yield warning(name, "it has no description", "say in one sentence what it does; the policy knows nothing else")
    if len(text) > _LONGEST:
        yield warning(name, f"its schema has {len(text):,} characters", "shorten it: it is in every prompt")
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
        yield error(
            name, f"`parameters` is not a valid JSON Schema: {problem.message:.160} (at {where})", "see draft 2020-12"
        )
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
        yield error(name, f"$ref {reference!r} points to nothing", "define it under `$defs` of the same schema")
    if contains_itself:
        yield warning(name, "its schema contains itself", "write it without recursion")
    schemas = {argument: schema for argument, schema in properties.items() if isinstance(schema, Mapping)}
    typeless = [argument for argument, schema in schemas.items() if not _SAYS_A_TYPE & schema.keys()]
    if typeless:
        yield warning(
            name, f"no type is given for {', '.join(typeless)}", "add `type`: without it the policy has to guess"
        )
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
            found = lookup(resolver, reference)
            if found[0] is None:
                dead.add(reference)
            else:
                inner.append(found)
        loops = [contains_itself(part, base, above | {id(schema)}) for part, base in inner]
        done.add(id(schema))
        return any(loops)

    recursive = contains_itself(parameters, resolver_of(parameters), frozenset())
    return sorted(dead), recursive


def resolver_of(root: Mapping[str, Any]) -> Any:
    """Return a resolver of the references within one schema; an empty registry never fetches a remote one."""
    resource = DRAFT202012.create_resource(root)
    name = resource.id() or ""
    return Registry[Any]().with_resource(name, resource).crawl().resolver(name)  # crawled once, not by every anchor


def lookup(resolver: Any, reference: str) -> tuple[Any, Any]:
    """Return the schema that a reference leads to, or ``None``, and the resolver of the references in it."""
    try:
        found = resolver.lookup(reference)
    except (Unresolvable, LookupError, ValueError, TypeError, AttributeError):  # pointers into what is no schema
        return None, resolver
    return (found.contents if isinstance(found.contents, Mapping | bool) else None), found.resolver
