"""Whether tools' schemas can stand in a prompt and say what a call must be; pure."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from pact_lightning.environments.findings import Finding, error, warning

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SAYS_A_TYPE = frozenset({"type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf"})
_LONGEST = 8_000

_FORM = '{"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}'


def check_schemas(tools: Sequence[Any]) -> list[Finding]:
    """Checks the schemas of all tools.

    Args:
        tools: What an environment gives as its ``tools``.

    Returns:
        What is wrong: JSON Schema draft 2020-12, names, the form of OpenAI's tools, references, descriptions.
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
    for reference in _references(parameters):
        if resolved(parameters, reference) is None:
            yield error(name, f"$ref {reference!r} leads nowhere", "define it under `$defs` of the same schema")
    if _is_recursive(parameters):
        yield warning(name, "its schema contains itself", "unroll it: a policy is better led by a finite form")
    schemas = {argument: schema for argument, schema in properties.items() if isinstance(schema, Mapping)}
    typeless = [argument for argument, schema in schemas.items() if not _SAYS_A_TYPE & schema.keys()]
    if typeless:
        yield warning(name, f"no type is given for {', '.join(typeless)}", "add `type`, or the policy has to guess")
    silent = [argument for argument, schema in schemas.items() if not {"description", "$ref"} & schema.keys()]
    if silent:
        yield warning(name, f"no description is given for {', '.join(silent)}", "describe each argument in a few words")


def resolved(root: Mapping[str, Any], reference: str) -> Any | None:
    """What a ``$ref`` within the same schema leads to; ``None`` where it leads nowhere or elsewhere.

    Args:
        root: The whole schema.
        reference: The reference, such as ``#/$defs/node``.
    """
    if not reference.startswith("#"):
        return None
    node: Any = root
    for step in reference[1:].split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, Mapping) and key in node:
            node = node[key]
        elif isinstance(node, list) and key.isdigit() and int(key) < len(node):
            node = node[int(key)]
        else:
            return None
    return node


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _is_recursive(root: Mapping[str, Any]) -> bool:
    """Whether following references from any definition leads back to it."""
    leads_to = {reference: set(_references(resolved(root, reference))) for reference in _references(root)}
    if "#" in leads_to:
        return True
    for start, first in leads_to.items():
        seen: set[str] = set()
        ahead = set(first)
        while ahead - seen:
            reference = (ahead - seen).pop()
            seen.add(reference)
            ahead |= leads_to.get(reference, set())
        if start in seen:
            return True
    return False
