"""Checks of tools' schemas, and the arguments made up from them."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from pact_lightning.environments.checker.arguments import bad_arguments, good_arguments
from pact_lightning.environments.checker.bounded import allows
from pact_lightning.environments.checker.schemas import check_schemas


def tool(parameters, name="look", description="Looks."):
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def form(properties, *required, **more):
    return {"type": "object", "properties": properties, "required": list(required), **more}


X = {"type": "string", "description": "A text."}
NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "value": {"type": "integer"}}}
RECURSIVE = form({"start": {"$ref": "#/$defs/node"}}, "start", **{"$defs": {"node": {**NODE, "required": ["value"]}}})
ENDLESS = form({"a": {"$ref": "#/$defs/a"}}, "a", **{"$defs": {"a": {**NODE, "required": ["next"]}, "node": NODE}})
ENDLESS["$defs"]["a"]["properties"] = {"next": {"$ref": "#/$defs/a"}}
RING = form({})
RING["properties"]["ring"] = RING
WIDE = form({letter: {"$ref": "#/$defs/n"} for letter in "abcdefghij"}, *"abcdefghij")
SLOW = "^([a-z]|[a-y])+[!?]$"
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
DEEP: dict = {"type": "string"}
for _ in range(5000):
    DEEP = {"type": "array", "items": DEEP}


@pytest.mark.parametrize(
    ("tools", "severity", "said"),
    [
        ([], "error", "there are none"),
        (["look"], "error", "not a tool in OpenAI format"),
        ([{"name": "look", "parameters": {}}], "error", "not a tool in OpenAI format"),
        ([{"type": "function", "function": {"name": ""}}], "error", "not a tool in OpenAI format"),
        ([{**tool(form({})), "type": "web"}], "error", "its `type` is 'web'"),
        ([tool(form({}), name="files.read it")], "warning", "its name has other characters"),
        ([tool(form({}), description=" ")], "warning", "no description"),
        ([tool(form({}), description="a" * 10_000)], "warning", "characters"),
        ([tool(None)], "error", "no `parameters`"),
        ([tool({"type": "objekt"})], "error", "is not a valid JSON Schema"),
        ([tool(form({"x": {"type": "string", "minLength": "a"}}))], "error", "(at properties/x/minLength)"),
        ([tool({"properties": {"x": X}})], "error", "`type: object`"),
        ([tool(form({"x": X}, "x", "y"))], "error", "`required` names y"),
        ([tool(form({"x": {"$ref": "#/$defs/none"}}))], "error", "points to nothing"),
        ([tool(form({"x": {"$ref": "https://example.org/schema"}}))], "error", "points to nothing"),
        ([tool(RECURSIVE)], "warning", "contains itself"),
        ([tool(form({"x": {"$ref": "#word"}}))], "error", "points to nothing"),
        ([tool(form({"x": {"$ref": "#/properties/y/maximum/0"}, "y": {"maximum": 1}}))], "error", "points to nothing"),
        ([tool(form({"x": {"$ref": "#/required/first"}}))], "error", "points to nothing"),
        ([tool(form({"x": {"$ref": "#/properties/x/description"}}))], "error", "points to nothing"),
        ([tool(form({"x": {"$ref": "#/properties/y/description"}, "y": X}))], "error", "points to nothing"),
        ([tool(form({"x": {"$ref": "http://["}}))], "error", "points to nothing"),
        ([tool(form({"x": {"$dynamicRef": "https://example.org/schema"}}))], "error", "points to nothing"),
        ([tool(form({"x": {"$ref": "#"}}))], "warning", "contains itself"),
        ([tool(form({"x": {"items": {"$ref": "#/properties/x"}}}))], "warning", "contains itself"),
        ([tool(RING)], "error", "is not usable JSON"),
        ([tool(DEEP)], "error", "is not usable JSON"),
        ([tool(form({"x": {"enum": {1}}}))], "error", "is not usable JSON"),
        ([tool(form({"x": {"description": "A."}, "y": {}}))], "warning", "no type is given for x, y"),
        ([tool(form({"x": {"type": "string"}, "y": X}))], "warning", "no description is given for x"),
        ([tool(form({"x": {**X, "pattern": "("}}))], "error", "'(' is not a 'regex'"),
        ([tool(form({"x": {**X, "description": "\ud83d"}}))], "error", "half of a character"),
        ([tool(form({"x": {"$ref": "#/x"}}, **{"$id": "http://["}))], "error", "cannot be read: ValueError"),
        ([tool(form({f"x{n}": X for n in range(6000)}))], "error", "characters"),
        ([tool(form({})), tool(form({}))], "error", "2 tools have this name"),
    ],
)
def test_mistakes_in_schemas(tools, severity, said):
    findings = check_schemas(tools)
    assert [f for f in findings if f.severity == severity and said in f.problem], findings


@pytest.mark.parametrize(
    "parameters",
    [
        form({}),
        form({"x": X}, "x"),
        form({"x": {"anyOf": [X, {"type": "null"}], "description": "A."}}),
        form({"x": {"$ref": "#/$defs/word"}}, **{"$defs": {"word": X}}),
        form({"x": {"$ref": "#word"}}, **{"$defs": {"word": {**X, "$anchor": "word"}}}),
        form({"x": {"$ref": "#/$defs/word"}}, **{"$id": "schemas/look", "$defs": {"word": X}}),
        form({"x": {"$ref": "https://example.org/word"}}, **{"$defs": {"w": {**X, "$id": "https://example.org/word"}}}),
        form({"x": {**X, "default": {"$ref": "#/no/schema"}}}),
        form({"x": {"type": "array", "items": {"$ref": "#/properties/y"}, "description": "A."}, "y": X}),
    ],
)
def test_right_schemas_have_no_findings(parameters):
    assert check_schemas([tool(parameters)]) == []


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (form({}), [{}]),
        (form({"x": X, "y": {"type": "integer"}}, "x"), [{"x": "zephyr"}, {"x": "zephyr", "y": 2}]),
        (form({"x": {"enum": ["b", "a"]}}, "x"), [{"x": "b"}]),
        (form({"x": {"type": "integer", "minimum": 10, "multipleOf": 4}}, "x"), [{"x": 12}]),
        (form({"x": {"type": "number", "exclusiveMaximum": -3}}, "x"), [{"x": -4}]),
        (form({"x": {"type": "string", "minLength": 8}}, "x"), [{"x": "zephyrxx"}]),
        (form({"x": {"type": "string", "format": "date"}}, "x"), [{"x": "2024-05-17"}]),
        (form({"x": {"type": "array", "items": {"type": "boolean"}, "minItems": 2}}, "x"), [{"x": [True, True]}]),
        (form({"x": {"type": "string", "pattern": "^[0-9]{4}$"}}, "x"), []),
        (form({"x": {"type": "string", "pattern": "^[0-9]{4}$", "examples": ["2024"]}}, "x"), [{"x": "2024"}]),
        (form({"x": {"anyOf": [X, {"type": "null"}], "default": None}}, "x"), [{"x": None}]),
        (form({"x": {"allOf": [{"type": "integer"}, {"minimum": 7}]}}, "x"), [{"x": 7}]),
        (RECURSIVE, [{"start": {"value": 2}}, None]),
        (ENDLESS, []),
        (form({"x": False}, "x"), []),
        (form({"x": {**X, "minLength": 7.0}}, "x"), [{"x": "zephyrx"}]),
        (form({"x": {**X, "minLength": 10**12}}, "x"), []),
        (form({"x": {"type": "array", "minItems": 10**9}}, "x"), []),
        (form({"x": {"type": "array", "items": X, "minItems": 2.0}}, "x"), [{"x": ["zephyr", "zephyr"]}]),
        (form({"x": {"type": "integer", "multipleOf": 1e-320}}, "x"), []),
        (form({"x": {"type": "integer", "minimum": 1e308, "multipleOf": 3}}, "x"), []),
        (form({"x": X}, "x", allOf=[{"$ref": "#"}]), []),
        (form({"x": {"$ref": "#/$defs/n"}}, "x", **{"$defs": {"n": WIDE}}), []),
        (form({"x": {**X, "minLength": 40, "pattern": SLOW}}, "x"), []),
        (form({"x": {**X, "minLength": 40, "pattern": SLOW, "$schema": DRAFT_7}}, "x"), []),
        (form({"x": X, "x" * 40: {}}, "x" * 40, patternProperties={SLOW: {}}), []),
        (form({"x": X}, "x", patternProperties={SLOW: {}}, unevaluatedProperties=False), []),
        (
            form({"x": {**X, "pattern": "^z"}}, "x", patternProperties={"^y": X}, additionalProperties=False),
            [{"x": "zephyr"}],
        ),
        (form({"x": {"$dynamicRef": "https://example.org/x"}}, "x"), []),
    ],
)
def test_arguments_made_from_schemas(parameters, expected):
    made = [one.arguments for one in good_arguments(parameters)]
    assert len(made) == len(expected)
    assert all(one == other for one, other in zip(made, expected, strict=True) if other is not None)


def test_arguments_that_a_schema_gives_are_not_invented():
    given = {"a": {"const": 1}, "b": {"enum": ["b"]}, "c": {**X, "default": "c"}, "d": {**X, "examples": ["d"]}}
    invented = {"e": X, "f": {"type": "boolean"}, "g": {"type": "array", "items": X}, "h": form({"i": X}, "i")}
    (one,) = good_arguments(form(given | invented, *given, *invented))
    assert one.arguments.keys() == given.keys() | invented.keys()
    assert one.invented == tuple(invented)


@pytest.mark.parametrize("keyword", ["$ref", "$dynamicRef"])
def test_a_remote_reference_is_never_fetched(keyword):
    asked = []

    class Schemas(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

    with ThreadingHTTPServer(("127.0.0.1", 0), Schemas) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        parameters = form({"x": {keyword: f"http://127.0.0.1:{server.server_port}/schema"}}, "x")
        assert "points to nothing" in check_schemas([tool(parameters)])[0].problem
        assert list(good_arguments(parameters)) == []
        server.shutdown()
    assert asked == []


TYPES = st.sampled_from(["string", "integer", "number", "boolean", "null"]).map(lambda kind: {"type": kind})
SCHEMAS = st.recursive(
    TYPES | st.lists(st.integers() | st.text(), min_size=1, max_size=3).map(lambda values: {"enum": values}),
    lambda inner: st.one_of(
        inner.map(lambda items: {"type": "array", "items": items}),
        st.lists(inner, min_size=1, max_size=3).map(lambda branches: {"anyOf": branches}),
        st.dictionaries(st.sampled_from("abc"), inner).map(lambda properties: form(properties, *list(properties)[:1])),
    ),
    max_leaves=6,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from("xyz"), SCHEMAS).map(lambda properties: form(properties, *list(properties)[:2])))
def test_good_arguments_are_valid_and_bad_ones_are_not(parameters):
    validator = Draft202012Validator(parameters)
    made = [one.arguments for one in good_arguments(parameters)]
    assert made
    for arguments in made:
        validator.validate(arguments)
        json.dumps(arguments)
    for bad in bad_arguments(parameters, made[-1]):
        assert bad.forbidden != validator.is_valid(bad.arguments)
    assert not [f for f in check_schemas([tool(parameters)]) if f.severity == "error"]


WORDS = st.sampled_from([
    "type", "properties", "required", "items", "anyOf", "allOf", "oneOf", "$ref", "$dynamicRef", "$id", "$anchor",
    "$defs",
    "pattern", "patternProperties", "additionalProperties", "minLength", "maxLength", "minItems", "minimum", "maximum",
    "multipleOf", "enum", "const", "default", "examples", "format", "x", "prefixItems", "unevaluatedProperties", "not",
])  # fmt: skip
LEAVES = (
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=3)
    | st.sampled_from(["object", "string", "array", "integer", "#", "#/$defs/x", "#/properties/x", "http://[", SLOW])
)  # fmt: skip
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=12
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(WORDS, ANYTHING, max_size=6).map(lambda more: {"type": "object", **more}))
def test_whatever_a_schema_says_is_a_finding_or_made_into_arguments(parameters):
    findings = check_schemas([tool(parameters)])
    assert all(finding.where == "look" and finding.remedy for finding in findings)
    if [f for f in findings if f.severity == "error"]:
        return
    for good in good_arguments(parameters):
        assert allows(parameters, good.arguments)
        forbidden = [bad for bad in bad_arguments(parameters, good.arguments) if bad.forbidden]
        assert not [bad for bad in forbidden if allows(parameters, bad.arguments)]


def test_bad_arguments_are_of_three_kinds():
    parameters = form({"x": X, "y": {"type": "integer"}}, "x", additionalProperties=False)
    bad = [(entry.what, entry.arguments, entry.forbidden) for entry in bad_arguments(parameters, {"x": "a", "y": 1})]
    assert bad == [
        ("without the required argument x", {"y": 1}, True),
        ("with x of another type", {"x": 7, "y": 1}, True),
        ("with y of another type", {"x": "a", "y": "seven"}, True),
        ("with an argument that does not exist", {"x": "a", "y": 1, "no_such_argument": 1}, True),
    ]
