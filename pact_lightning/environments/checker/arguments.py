"""Arguments made from a tool's schema: some that it allows, some that it forbids."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pact_lightning.environments.checker.bounded import allows
from pact_lightning.environments.checker.schemas import lookup, resolver_of

WORD = "zephyr"
"""Text of every free string."""

_DEEPEST = 8
_MOST_VALUES = 2_000
_LONGEST_TEXT = 8_000
_UNMAKEABLE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
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


@dataclass(frozen=True, slots=True)
class GoodArguments:
    """Arguments that a schema allows.

    Attributes:
        arguments: The arguments.
        invented: Those of them that the schema does not give, by ``const``, ``default``, ``examples`` or ``enum``.
    """

    arguments: dict[str, Any]
    invented: tuple[str, ...] = ()


def good_arguments(parameters: Mapping[str, Any], word: str = WORD) -> Iterator[GoodArguments]:
    """Make arguments that the schema allows: the required ones only, then all of them.

    Args:
        parameters: The tool's JSON Schema.
        word: Text of strings without further constraints.

    Yields:
        Up to two sets; none where a schema asks for more than can be made up here, such as a pattern.
    """
    made: list[dict[str, Any]] = []
    for everything in (False, True):
        maker = _Maker(resolver_of(parameters), word, everything)
        try:
            arguments = maker.value(parameters, 0)
        except _UNMAKEABLE:  # the schema is anybody's: a length of a billion, a multiple of 1e-320
            continue
        if isinstance(arguments, dict) and arguments not in made and allows(parameters, arguments):
            made.append(arguments)
            yield GoodArguments(arguments, tuple(maker.invented))


def bad_arguments(parameters: Mapping[str, Any], good: Mapping[str, Any]) -> Iterator[BadArguments]:
    """Make arguments that the schema forbids, and an unknown one whether it forbids that or not.

    Args:
        parameters: The tool's JSON Schema.
        good: Arguments that it allows.

    Yields:
        One set per required argument without it, one per argument with a value of another type, and one with an
        argument that does not exist.
    """
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
    yield from (candidate for candidate in candidates if allows(parameters, candidate.arguments) is False)
    unknown = {**good, "no_such_argument": 1}
    yield BadArguments("with an argument that does not exist", unknown, allows(parameters, unknown) is False)


def _kind(schema: Any, root: Mapping[str, Any]) -> str | None:
    """Return the single type that a schema names."""
    if isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str):
        schema = lookup(resolver_of(root), schema["$ref"])[0]
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    return kind if isinstance(kind, str) else None


@dataclass(slots=True)
class _Maker:
    resolver: Any
    word: str
    everything: bool
    invented: list[str] = field(default_factory=list)
    made: int = 0
    made_up: bool = False  # since the present argument began
    inside: bool = False  # an argument

    def value(self, schema: Any, depth: int) -> Any:
        """Guess a value for a schema; the caller validates the whole.

        Raises:
            ValueError: The schema asks for more values than anybody would give.
        """
        self.made += 1
        if self.made > _MOST_VALUES:
            raise ValueError("too many values")
        if not isinstance(schema, Mapping) or depth > _DEEPEST:
            return None if depth > _DEEPEST else self.word
        if isinstance(schema.get("$ref"), str):
            return self.value(lookup(self.resolver, schema["$ref"])[0], depth + 1)
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
        self.made_up = True
        if kind in ("integer", "number"):
            return _number(schema, kind)
        if kind == "string":
            text = _FORMATS.get(str(schema.get("format")), self.word)
            missing = int(schema.get("minLength", 0)) - len(text)
            if missing > _LONGEST_TEXT:
                raise ValueError("too long a text")
            text += "x" * missing
            return text[: int(schema.get("maxLength", len(text)))]
        return {"boolean": True, "null": None}.get(kind)

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = schema.get("required", ())
        # A recursive schema may repeat itself for ever through optional fields below the top.
        names = [name for name in properties if name in required or (self.everything and depth < _DEEPEST // 2)]
        if self.inside:
            return {name: self.value(properties[name], depth + 1) for name in names}
        self.inside, made = True, {}
        for name in names:
            self.made_up = False
            made[name] = self.value(properties[name], depth + 1)
            self.invented += [name] * self.made_up
        return made

    def _array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        first = [self.value(entry, depth + 1) for entry in schema.get("prefixItems", ())]
        wanted = max(int(schema.get("minItems", 0)), 1 if depth < _DEEPEST // 2 and not first else 0)
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
