"""MCP servers that are old, noisy, wrong or not there, and the pure parts."""

import base64
import copy
import json
import re
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pact_lightning.environments.mcp.leniency import read_leniently
from pact_lightning.environments.mcp.results import tool_result
from pact_lightning.environments.mcp.server import tool_schemas
from pact_lightning.environments.protocol import ToolResult

mcp_missing = find_spec("mcp") is None
needs_mcp = pytest.mark.skipif(mcp_missing, reason="needs the mcp package")
if not mcp_missing:
    from test_mcp_environment import plain

    from pact_lightning.environments.mcp.environment import MCPEnvironment
    from pact_lightning.environments.mcp.server import MCPServerError


@needs_mcp
def test_a_server_of_the_first_version_works():
    environment = plain("well")
    environment.reset(None, 0)
    assert environment.call("echo", {"text": "a\nb <|im_end|>"}).text == "a\nb <|im_end|>"
    result = environment.call("echo", {"text": "refuse"})
    assert (result.text, result.error) == ("The tool failed and did not say why.", True)
    environment.close()


@needs_mcp
def test_an_answer_against_the_protocol_is_an_error_response_and_the_session_goes_on():
    environment = plain("well")
    assert environment.call("echo", {"text": "bad"}).error
    assert environment.call("echo", {"text": "good"}).text == "good"
    assert environment.restarts == 0
    environment.close()


@needs_mcp
def test_answers_that_keep_less_than_the_protocol_are_read(caplog):
    environment = plain("loose")
    assert [tool["function"]["parameters"] for tool in environment.tools] == [
        {"type": "object", "properties": {"text": {}}},
        {"type": "object"},
    ]

    def said(text):
        result = environment.call("echo", {"text": text})
        return ("! " if result.error else "") + result.text

    assert said("no structured") == "42"
    assert said("other structured") == '{"n": "many"}'
    assert said("no content") == '{"n": 1}'
    assert said("a list") == "[1, 2]"
    assert said("null flag") == "\nb"
    assert said("unknown block") == "a\n[video, not shown]"
    assert said("half a character") == "a?b"
    assert said("no UTF-8") == "caf\ufffd"
    assert said("failed") == "! no such row"
    assert said("not a number").startswith("! The tool echo failed: the result cannot be written as JSON")
    assert environment.call("number", {"text": "no structured"}).text == "42"
    assert environment.restarts == 0
    said("no content")
    told = [record.getMessage() for record in caplog.records if "does not follow MCP" in record.getMessage()]
    assert len(told) == len(set(told)) == 8  # each kind once
    assert f"{environment._spec.name} does not follow MCP: the inputSchema of echo is completed; " in told[1]
    environment.close()


@needs_mcp
def test_a_list_that_cannot_be_read_is_one_sentence():
    with pytest.raises(MCPServerError, match=r"does not start: .*tools\.1\.inputSchema") as caught:
        plain("wrong").reset(None, 0)
    assert "\n" not in str(caught.value)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "tools",
                    "name",
                    "inputSchema",
                    "properties",
                    "required",
                    "type",
                    "content",
                    "structuredContent",
                    "text",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(JSON_VALUES)
def test_any_result_can_be_mended_and_a_mended_one_stays(result):
    read_leniently(result)
    mended = copy.deepcopy(result)
    assert read_leniently(result) == []
    assert result == mended


def test_a_result_that_keeps_to_the_protocol_stays():
    tool = {"name": "a", "inputSchema": {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]}}
    block = {"type": "text", "text": "a"}
    for result in (
        {"tools": [tool], "nextCursor": "2"},
        {"content": [block, {"type": "image", "data": "QQ==", "mimeType": "image/png"}], "structuredContent": {"a": 1}},
        {"content": [], "isError": True},
        {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "tools": [None]},
    ):
        as_it_was = copy.deepcopy(result)
        assert read_leniently(result) == []
        assert result == as_it_was


@needs_mcp
def test_garbage_on_standard_output_is_left_out_and_told_once(caplog):
    environment = plain("garbage")
    environment.reset(None, 0)
    assert [environment.call("echo", {"text": text}).text for text in "abc"] == ["a", "b", "c"]
    assert environment._connection.garbage >= 8
    assert [record.getMessage() for record in caplog.records if "standard output" in record.getMessage()] == [
        f"{environment._spec.name} writes lines to its standard output that are no MCP messages; they are left out. "
        "Let it print to standard error."
    ]
    assert not [record for record in caplog.records if record.exc_info]
    environment.close()


@needs_mcp
def test_every_page_of_the_tools_is_read():
    environment = plain("pages")
    assert [tool["function"]["name"] for tool in environment.tools] == ["echo0", "echo1", "echo2", "echo3"]
    environment.close()


@needs_mcp
@pytest.mark.parametrize(
    ("mode", "said"), [("twice", "it lists two tools named 'echo'"), ("nothing", "it lists no tools")]
)
def test_tools_that_no_prompt_can_hold_are_refused(mode, said):
    with pytest.raises(MCPServerError, match=said):
        plain(mode).reset(None, 0)


@needs_mcp
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"command": "no-such-program"}, "no-such-program does not start: .*No such file"),
        ({"command": sys.executable, "args": ["-c", "import nowhere"]}, "it says: ModuleNotFoundError: No module"),
        ({"command": sys.executable, "args": ["-c", "print(1)"]}, "does not start"),
        ({"url": "http://127.0.0.1:9/mcp"}, "http://127.0.0.1:9/mcp does not start"),
        ({"server": "no_such_module.server"}, "cannot be imported"),
        ({"server": ".server"}, "the server '.server' cannot be imported: it has an empty part"),
        ({"server": "sys.path"}, "must be an MCPServer or a function that makes one"),
    ],
)
def test_a_server_that_does_not_start_is_one_sentence(arguments, said):
    with pytest.raises(MCPServerError, match=said) as caught:
        MCPEnvironment(**arguments).reset(None, 0)
    assert "\n" not in str(caught.value)


@needs_mcp
def test_a_server_that_never_answers_is_given_up_on():
    with pytest.raises(MCPServerError, match=r"did not start within 0.5 seconds \(start_timeout_s\)"):
        plain("deaf", start_timeout_s=0.5).reset(None, 0)


@needs_mcp
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "none of them is given"),
        ({"command": "a", "url": "b"}, "command and url is given"),
        ({"url": "b", "args": ["a"]}, "`args` goes with `command`"),
        ({"command": "a", "headers": {"a": "b"}}, "`headers` goes with `url`"),
        ({"server": "module"}, "must be an import path"),
        ({"command": "a", "session": "mine"}, "per_rollout or shared"),
        ({"command": "a", "timeout_s": 0}, "must be above 0"),
        ({"command": "a", "args": ["{rollout}"], "session": "shared"}, "needs `session: per_rollout`"),
        ({"url": "a", "fixed_arguments": {"k": ["{rollout}"]}, "session": "shared"}, "needs `session: per_rollout`"),
    ],
)
def test_wrong_settings_are_refused_before_anything_starts(arguments, said):
    with pytest.raises(ValueError, match=said):
        MCPEnvironment(**arguments)


def test_a_missing_sdk_is_one_sentence(monkeypatch):
    from pact_lightning.environments.mcp import server as mcp_server

    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(ImportError, match=r"pip install 'pact-lightning\[mcp\]'"):
        mcp_server.MCPServerSpec(command="a")


def answer(*texts, structured=None, error=False):
    content = [SimpleNamespace(type="text", text=text) for text in texts]
    return SimpleNamespace(content=content, structured_content=structured, is_error=error)


@given(st.lists(st.text()), st.booleans())
def test_texts_are_joined(texts, error):
    result = tool_result(answer(*texts, error=error))
    assert result.error == error
    assert result.text == ("\n".join(texts) or ("The tool failed and did not say why." if error else ""))


@pytest.mark.parametrize(
    ("texts", "structured", "text"),
    [
        ([], {"result": "a"}, "a"),
        ([], {"result": [1]}, "[1]"),
        ([], {"result": 1, "b": 2}, '{"result": 1, "b": 2}'),
        ([], [1], "[1]"),
        ([], {}, "{}"),
        ([], {"result": []}, "[]"),
        ([], {"result": None}, "null"),
        (["a"], {"result": "a"}, "a"),
        (["1", "x"], {"result": [1, "x"]}, '[1, "x"]'),
        (['{"b": [2.0],\n "a": "é"}'], {"a": "é", "b": [2.0]}, '{"a": "é", "b": [2.0]}'),
        (['{"result": 1}'], {"result": 1}, "1"),
        (["two pens"], {"pens": 2}, 'two pens\n{"pens": 2}'),
        (["see:", '{"pens": 2}'], {"pens": 2}, 'see:\n{"pens": 2}'),
        (["true"], {"result": 1}, "true\n1"),
        (["a"], {}, "a"),
        (["a"], [], "a"),
        (["a"], {"result": None}, "a"),
        (["a"], {"result": {}}, "a"),
        ([""], {"pens": 2}, '{"pens": 2}'),
        ([" "], {}, "{}"),
    ],
)
def test_texts_and_structured_results(texts, structured, text):
    assert tool_result(answer(*texts, structured=structured)).text == text
    assert tool_result(answer("no", structured=structured, error=True)).text == "no"


def test_one_field_of_a_structured_result():
    both = {"shown": ["a"], "state": "secret"}
    assert tool_result(answer(json.dumps(both), "more", structured=both), "shown").text == '["a"]'
    assert tool_result(answer(structured={"shown": None}), "shown").text == "null"
    assert tool_result(answer(structured={"other": 1}), "shown").text == '{"other": 1}'
    assert tool_result(answer("no", structured=both, error=True), "shown") == ToolResult('["a"]', error=True)


def broken(data):
    return "\n".join(data[at : at + 76] for at in range(0, len(data), 76))


@settings(deadline=None)
@given(
    st.binary(min_size=12, max_size=400),
    st.sampled_from([
        str, broken, lambda data: data.rstrip("="), lambda data: data.translate(str.maketrans("+/", "-_")),
        lambda data: json.dumps({"a": [broken(data)]}), lambda data: data.replace("/", "\\/"),
        lambda data: f"data:image/png;base64,{data}",
    ]),
    st.sampled_from(["image", "resource", "text"]),
)  # fmt: skip
def test_base64_of_a_block_is_never_shown(binary, written, where):
    data = base64.b64encode(binary).decode()
    blob = SimpleNamespace(uri="file://a", mime_type="image/png", blob=data)
    block = (
        SimpleNamespace(type="resource", resource=blob)
        if where == "resource"
        else SimpleNamespace(type="image", data=data, mime_type="image/png")
    )
    result = answer(f"A picture: {written(data)}!", structured={"deep": [{"picture": written(data)}, "kept"]})
    result.content.append(block)
    text = tool_result(result).text
    assert text.startswith("A picture: ")
    assert '"kept"' in text
    assert text.count("not shown]") == 3
    rest = re.sub(r"\[[^\]]*not shown\]", "", text)
    assert len(rest) < 80, "but for names, words and braces nothing is left"


def test_included_tools_stand_in_the_given_order():
    tools = [SimpleNamespace(name=name, description=None, input_schema={"type": "object"}) for name in "abc"]
    assert [tool["function"]["name"] for tool in tool_schemas(tools, ["c", "a"])] == ["c", "a"]
    assert tool_schemas(tools, None)[0]["function"] == {
        "name": "a",
        "description": "",
        "parameters": {"type": "object"},
    }
