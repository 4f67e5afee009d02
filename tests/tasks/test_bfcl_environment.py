"""BFCL's simulated APIs: valid schemas, the leaderboard's own answers, fresh and independent instances, no code run."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import pytest
from bfcl_play import Official
from hypothesis import given, settings
from hypothesis import strategies as st

from pact_lightning.environments.protocol import Environment
from pact_lightning.tasks.bfcl import package as bfcl_package
from pact_lightning.tasks.bfcl.environment import MAX_PRECISION, BFCLEnvironment, affordable
from pact_lightning.tasks.bfcl.package import API_CLASSES, INSTALL, api_class, tool_schemas
from pact_lightning.tasks.bfcl.rows import parameter_names
from pact_lightning.tasks.bfcl.tasks import BFCLTasks
from pact_lightning.types.prompt import EnvironmentSpec, PromptView

pytest.importorskip("bfcl_eval", reason=f"needs BFCL: {INSTALL}")

PROMPT = PromptView("x", ({"role": "user", "content": "x"},), (), EnvironmentSpec("no.matter"))
DISK = {
    "GorillaFileSystem": {
        "root": {"home": {"type": "directory", "contents": {"a.txt": {"type": "file", "content": "b\na"}}}}
    }
}


def started(classes, config=None, **further):
    environment = BFCLEnvironment(classes, config or {}, **further)
    environment.reset(PROMPT, 0)
    return environment


def test_every_schema_is_json_schema_and_fits_its_function():
    tools = tool_schemas(API_CLASSES)
    assert len(tools) == len({tool["function"]["name"] for tool in tools}) == 128
    signatures = parameter_names(API_CLASSES)
    for tool in tools:
        parameters = tool["function"]["parameters"]
        jsonschema.Draft202012Validator.check_schema(parameters)
        assert parameters["type"] == "object"
        assert set(parameters["properties"]) == set(signatures[tool["function"]["name"]])
        assert set(parameters["required"]) <= set(parameters["properties"])
        assert set(types_in(parameters)) <= {"object", "string", "number", "integer", "array", "boolean"}


def types_in(schema):
    yield schema["type"]
    for inner in [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]:
        yield from types_in(inner)


def test_ground_truth_arguments_fit_the_schemas():
    """A check of the conversion by data; one ground-truth call of BFCL's does not keep to its own docs."""
    wrong = []
    for task in BFCLTasks().load():
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in task.prompt.tools}
        for call in task.reference.calls:
            wrong += [
                e.message for e in jsonschema.Draft202012Validator(schemas[call["name"]]).iter_errors(call["arguments"])
            ]
    assert wrong == ["'ticket_001' is not of type 'integer'"]


def test_it_is_an_environment_and_answers():
    environment = started(["GorillaFileSystem", "MathAPI"], DISK)
    assert isinstance(environment, Environment)
    assert len(environment.tools) == 35
    assert environment.call("sort", {"file_name": "a.txt"}).text == '{"sorted_content": "a\\nb"}'
    missing = environment.call("cat", {"file_name": "no.txt"})
    assert (missing.error, missing.text.startswith('{"error": "cat: ')) == (True, True)
    with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
        BFCLEnvironment(["MathAPI"]).call("add", {"a": 1, "b": 2})


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("cat", {}, "missing 1 required positional argument: 'file_name'"),
        ("cat", {"file_name": "a.txt", "file name": 1}, "unexpected keyword argument 'file name'"),
        ("cat", {"self": 1}, "multiple values for argument 'self'"),
        ("cat", {"file_name": ["a.txt"]}, "unhashable type: 'list'"),
        ("_load_scenario", {"scenario": {}}, "name '_load_scenario' is not defined"),
        ("__init__", {}, "name '__init__' is not defined"),
        ("root", {}, "name 'root' is not defined"),
        ("no_such", {}, "name 'no_such' is not defined"),
    ],
)
def test_exceptions_are_observations(name, arguments, says):
    result = started(["GorillaFileSystem"], DISK).call(name, arguments)
    assert result.error
    assert result.text.startswith("Error during execution: ")
    assert says in result.text


def test_observations_are_the_leaderboard_s():
    """Ground-truth calls, and the same with an argument too many, which fail."""
    official = Official()
    for task in BFCLTasks(["base", "long_context"]).load()[::7]:
        calls = [
            *task.reference.calls,
            *({**c, "arguments": {**c["arguments"], "odd": 1}} for c in task.reference.calls),
        ]
        environment = task.prompt.environment.build()
        environment.reset(task.prompt, 0)
        ours = [environment.call(call["name"], call["arguments"]).text for call in calls]
        assert ours == official.texts(task, calls), task.id


def test_a_reset_starts_afresh_and_instances_share_nothing():
    config = {"TravelAPI": {"credit_card_list": {}, "access_token": "t", "token_expires_in": 9}}
    one, other = started(["TravelAPI"], config, long_context=True), started(["TravelAPI"], config, long_context=True)
    cards = one.call("get_all_credit_cards", {}).text
    assert len(cards) > 100, "the long context has cards of its own"
    for card in one._apis._instances["TravelAPI"].credit_card_list.values():
        card["balance"] = -1
    assert one.call("get_all_credit_cards", {}).text != cards
    assert other.call("get_all_credit_cards", {}).text == cards
    one.reset(PROMPT, 1)
    assert one.call("get_all_credit_cards", {}).text == cards
    assert config == {"TravelAPI": {"credit_card_list": {}, "access_token": "t", "token_expires_in": 9}}


def test_arguments_stay_as_they_were():
    """The Twitter API keeps the list that it is given and adds to it."""
    environment = started(["TwitterAPI"], {"TwitterAPI": {"username": "u", "password": "p", "authenticated": True}})
    arguments = {"content": "Hello", "tags": [], "mentions": ["@a"]}
    tweet = json.loads(environment.call("post_tweet", arguments).text)
    environment.call("mention", {"tweet_id": tweet["id"], "mentioned_usernames": ["@b"]})
    assert "@b" in environment.call("get_tweet", {"tweet_id": tweet["id"]}).text
    assert arguments == {"content": "Hello", "tags": [], "mentions": ["@a"]}


def test_rollouts_at_the_same_time_do_not_disturb_each_other():
    """The precision of ``logarithm`` is a setting of the whole process."""

    def digits(precision):
        environment = started(["MathAPI"])
        return {environment.call("logarithm", {"value": 7, "base": 3, "precision": precision}).text for _ in range(200)}

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(digits, [5, 40, 9, 200]))
    assert [len(texts) for texts in results] == [1, 1, 1, 1]
    lengths = [len(text) for texts in results for text in texts]
    assert sorted(lengths) == [lengths[0], lengths[2], lengths[1], lengths[3]]
    assert lengths[3] > 200, "all digits that were asked for"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("power", {"base": 10, "exponent": 10**9}),
        ("logarithm", {"value": 2, "base": 3, "precision": 10**9}),
        ("square_root", {"number": 2, "precision": 10**9}),
    ],
)
def test_calls_that_would_not_come_back_are_refused(name, arguments):
    result = started(["MathAPI"]).call(name, arguments)
    assert result.error
    assert ("4300 digits" if name == "power" else f"at most {MAX_PRECISION}") in result.text


def test_rounding_to_a_billion_places_is_zero():
    assert started(["MathAPI"]).call("round_number", {"number": 5, "decimal_places": -(10**9)}).text == '{"result": 0}'


@settings(deadline=None, max_examples=100)
@given(st.integers(-(10**6), 10**6), st.integers(-50, 6000))
def test_a_refused_power_is_one_that_python_does_not_write_out(base, exponent):
    refused = refusal(affordable, "power", {"base": base, "exponent": exponent})
    assert not refused or refused == refusal(lambda: str(base**exponent))


def refusal(function, *arguments):
    try:
        function(*arguments)
    except ValueError as error:
        return str(error)
    return ""


ODD = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**30), 10**30),
        st.floats(allow_nan=False, allow_infinity=False),
        st.sampled_from(["", ".", "..", "a.txt", "/", "2024-01-01", "-1", "x" * 1000]),
        st.text(max_size=5),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_whatever_is_called_comes_back_as_text(data):
    """Values of any kind for the functions' own parameters, one call after the other."""
    environment = started(API_CLASSES, DISK, long_context=data.draw(st.booleans()))
    functions = {tool["function"]["name"]: tool["function"]["parameters"]["properties"] for tool in environment.tools}
    for _ in range(8):
        name = data.draw(st.sampled_from(sorted(functions)))
        arguments = {parameter: data.draw(ODD) for parameter in functions[name]}
        before = json.dumps(arguments)
        result = environment.call(name, arguments)
        assert isinstance(result.text, str)
        assert json.dumps(arguments) == before


def test_unknown_apis_are_named():
    with pytest.raises(ValueError, match="there is no simulated API 'WebSearchAPI'; there are GorillaFileSystem, "):
        BFCLEnvironment(["WebSearchAPI"])
    with pytest.raises(ValueError, match="there is no simulated API"):
        api_class("os")
    with pytest.raises(ValueError, match="GorillaFileSystem cannot load its initial state"):
        started(["GorillaFileSystem"], {"GorillaFileSystem": {"root": {}}})


def test_without_the_package_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(bfcl_package, "PACKAGE", "no_such_package_here")
    for use in (lambda: BFCLEnvironment(["MathAPI"]), lambda: BFCLTasks().load()):
        with pytest.raises(ImportError, match="pip install --no-deps bfcl-eval") as error:
            use()
        assert len(str(error.value).splitlines()) == 1


def test_using_it_makes_no_folders(tmp_path, warm_python):
    program = (
        "from pact_lightning.tasks.bfcl.tasks import BFCLTasks\n"
        "from pact_lightning.tasks.bfcl.score import bfcl_case, check_calls\n"
        "case = bfcl_case(BFCLTasks(limit=1).load()[0])\n"
        "assert all(check.valid for check in check_calls(case.ground_truth, case))\n"
        "import sys\n"
        "assert 'bfcl_eval.constants.eval_config' not in sys.modules\n"
    )
    environment = {name: value for name, value in warm_python.environment.items() if name != "BFCL_PROJECT_ROOT"}
    subprocess.run(warm_python.command("-c", program), cwd=tmp_path, env=environment, check=True)
    assert list(tmp_path.iterdir()) == []
