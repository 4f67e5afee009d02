"""Arguments made from a tool's schema: some that it allows, some that it forbids; pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator

from pact_lightning.environments.schema_check import resolved

WORD = "zephyr"
"""The text of every free string."""

_DEEPEST = 8
_FORMATS = {
    "date": "2024-05-17", "date-time": "2024-05-17T10:30:00Z", "time": "10:30:00Z", "duration": "P1D",
    "email": "ann@example.org", "uri": "https://example.org", "uuid": "0b3a7f52-6f0c-4f0e-9a43-3f1f3f0d2c11",
    "ipv4": "192.0.2.1", "ipv6": "2001:db8::1", "hostname": "example.org",
}  # fmt: skip
# What stands for a value of another type than the key's.
_OTHER_TYPE: dict[str, Any] = {
    "string": 7, "integer": "seven", "number": "seven", "boolean": "perhaps", "array": "one", "object": "one",
    "null": "nothing",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class BadArguments:
    """Arguments that no call should have.

    Attributes:
        what: What is wrong with them.
        arguments: The arguments.
        forbidden: Whether the schema forbids them; it mostly allows what it does not know.
    """

    what: str
    arguments: dict[str, Any]
    forbidden: bool = True


def good_arguments(parameters: Mapping[str, Any], word: str = WORD) -> Iterator[dict[str, Any]]:
    """Arguments that the schema allows: the required ones only, then all of them.

    Args:
        parameters: The tool's JSON Schema.
        word: The text of strings that nothing else is said of.

    Yields:
        Up to two sets; none where a schema says more than can be made up here (a pattern, say).
    """
    validator = Draft202012Validator(parameters)
    made: list[dict[str, Any]] = []
    for everything in (False, True):
        arguments = _Maker(parameters, word, everything).value(parameters, 0)
        if isinstance(arguments, dict) and arguments not in made and validator.is_valid(arguments):
            made.append(arguments)
            yield arguments


def bad_arguments(parameters: Mapping[str, Any], good: Mapping[str, Any]) -> Iterator[BadArguments]:
    """Arguments that the schema forbids, and an unknown one whether it does or not.

    Args:
        parameters: The tool's JSON Schema.
        good: Arguments that it allows.

    Yields:
        One set per required argument without it, one per argument with a value of another type, and one with an
        argument that does not exist.
    """
    validator = Draft202012Validator(parameters)
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


def _kind(schema: Any, root: Mapping[str, Any]) -> str | None:
    """The single type that a schema names."""
    if isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str):
        schema = resolved(root, schema["$ref"])
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    return kind if isinstance(kind, str) else None


@dataclass(frozen=True, slots=True)
class _Maker:
    root: Mapping[str, Any]
    word: str
    everything: bool

    def value(self, schema: Any, depth: int) -> Any:
        """A value for a schema, as far as that can be guessed; the caller validates the whole."""
        if not isinstance(schema, Mapping) or depth > _DEEPEST:
            return None if depth > _DEEPEST else self.word
        if isinstance(schema.get("$ref"), str):
            return self.value(resolved(self.root, schema["$ref"]), depth + 1)
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
        # Below the top, optional fields may be where a recursive schema goes on for ever.
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
