"""The endpoint's client against a real server: retries, limits, counts, and the one sentence of each failure."""

import asyncio
import logging
import socket
import sys
import threading

import pytest
from scripted_server import SOON, Answer, ScriptedServer, chat, native

from pact_lightning.teacher.endpoint import (
    Endpoint,
    EndpointConfig,
    EndpointError,
    NativeCall,
    RequestFailedError,
    UnreadableReplyError,
    Usage,
    read_reply,
)

HELLO = [{"role": "user", "content": "hello"}]


def ask(config, times=1, messages=HELLO, tools=()):
    """Asks at the same time; gives the replies and the endpoint."""

    async def run():
        async with Endpoint(config) as endpoint:
            return await asyncio.gather(*(endpoint.complete(messages, tools) for _ in range(times))), endpoint

    return asyncio.run(run())


def in_turn(*answers):
    return lambda request, number: answers[min(number, len(answers) - 1)]


def test_a_reply_and_what_it_cost():
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    with ScriptedServer(in_turn(native(("add", '{"a": 1}'), content="so", usage=(1000, 50)))) as server:
        config = server.config(temperature=0.5, max_tokens=64, price_in=2.0, price_out=10.0, extra_body={"top_k": 5})
        (reply,), endpoint = ask(config, tools=[tool])
    assert (reply.text, reply.calls) == ("so", (NativeCall("id-0", "add", '{"a": 1}'),))
    assert endpoint.usage == Usage(requests=1, prompt_tokens=1000, completion_tokens=50)
    assert endpoint.usage.cost(config) == pytest.approx((1000 * 2 + 50 * 10) / 1e6)
    assert server.requests == [
        {"model": "scripted", "messages": HELLO, "tools": [tool], "temperature": 0.5, "max_tokens": 64, "top_k": 5}
    ]


@pytest.mark.parametrize(
    "trouble",
    [
        Answer({"error": {"message": "slow down"}}, 429, SOON),
        Answer({"error": "overloaded"}, 503, SOON),
        Answer(b"<html>bad gateway</html>", 502, SOON),
        Answer(chat("hi").body, cut=20),
        Answer(b'{"choices": [{"mess'),
        Answer({"choices": []}),
        Answer({"choices": [{"message": {"content": 3}}]}),
        Answer(b"[" * 5000),
    ],
    ids=["429", "503", "html", "broken-off", "half-json", "no-choices", "wrong-type", "deep"],
)
def test_trouble_is_asked_again_and_counted(trouble):
    with ScriptedServer(in_turn(trouble, trouble, chat("hi"))) as server:
        (reply,), endpoint = ask(server.config(retries=2))
    assert reply.text == "hi"
    assert (endpoint.usage.requests, endpoint.usage.retries, len(server.requests)) == (1, 2, 3)


@pytest.mark.parametrize(
    ("trouble", "refused", "says"),
    [
        (Answer({"error": {"message": "slow down"}}, 429, SOON), False, "(429): "),
        (Answer({"error": {"message": "oops"}}, 500, SOON), False, "still failed after 1 retries (500)"),
        (Answer({"error": {"message": "too long"}}, 400), True, "refuses the request (400)"),
        (Answer(b"no"), False, "gave no readable reply: it is not JSON"),
        (Answer({}, delay=0.6), False, "did not answer within 0.2 seconds"),
    ],
)
def test_a_request_that_fails_for_good(trouble, refused, says):
    with ScriptedServer(in_turn(trouble)) as server, pytest.raises(RequestFailedError) as failed:
        ask(server.config(retries=1, timeout_s=0.2))
    assert failed.value.refused is refused
    assert says in str(failed.value)
    assert len(server.requests) == (1 if refused else 2)


@pytest.mark.parametrize(
    ("trouble", "tried"),
    [
        (Answer({"error": {"message": "oops"}}, 500, SOON), 3),
        (Answer({"error": {"message": "too long"}}, 400), 1),
        (Answer(b"no"), 3),
        (Answer({}, delay=0.6), 3),
    ],
    ids=["500", "refused", "unreadable", "silent"],
)
def test_failed_requests_are_counted(trouble, tried):
    async def run(config):
        async with Endpoint(config) as endpoint:
            with pytest.raises(RequestFailedError):
                await endpoint.complete(HELLO)
            return endpoint.usage

    with ScriptedServer(in_turn(trouble)) as server:
        usage = asyncio.run(run(server.config(retries=2, timeout_s=0.2)))
        assert len(server.requests) == tried
    assert usage == Usage(requests=1, retries=tried - 1)


@pytest.mark.parametrize(("status", "says"), [(401, "refuses the key"), (403, "refuses the key"), (404, "no such")])
def test_an_endpoint_of_no_use(status, says, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TEACHER_KEY", "sk-secret-123")
    trouble = Answer({"error": {"message": "bad key sk-secret-123"}}, status)
    with ScriptedServer(in_turn(trouble)) as server, pytest.raises(EndpointError, match=says) as failed:
        ask(server.config(api_key_env="TEACHER_KEY"))
    assert not isinstance(failed.value, RequestFailedError)
    assert server.keys == ["Bearer sk-secret-123"]
    assert "sk-secret-123" not in str(failed.value)
    assert "sk-secret-123" not in caplog.text
    assert len(str(failed.value).splitlines()) == 1


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(
        EndpointError, match=r"cannot be reached.*base_url correct, and is the server running\?"
    ) as failed:
        ask(EndpointConfig("m", url, "", retries=0))
    assert not isinstance(failed.value, RequestFailedError)


def test_never_more_requests_at_a_time_than_allowed():
    busy, most, lock = [0], [0], threading.Lock()

    def script(request, number):
        with lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        threading.Event().wait(0.02)
        with lock:
            busy[0] -= 1
        return chat("hi")

    with ScriptedServer(script) as server:
        replies, _ = ask(server.config(concurrency=3), times=12)
    assert len(replies) == 12
    assert most[0] == 3


def test_the_key_comes_from_the_environment_alone(monkeypatch):
    config = EndpointConfig("m", "http://127.0.0.1:1/v1", "TEACHER_KEY")
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with pytest.raises(ValueError, match="TEACHER_KEY does not hold an API key"):
        Endpoint(config)
    monkeypatch.setenv("TEACHER_KEY", "sk\nsecret")
    with pytest.raises(ValueError, match="contains characters") as refused:
        Endpoint(config)
    assert "secret" not in str(refused.value)


def test_the_missing_extra_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)  # as if it were not there
    with pytest.raises(ImportError, match=r"pip install 'pact-lightning\[teacher\]'"):
        Endpoint(EndpointConfig("m", "http://127.0.0.1:1/v1", ""))


@pytest.mark.parametrize(
    "changes",
    [
        {"base_url": "127.0.0.1:8000"},
        {"base_url": "https://me:key@host/v1"},
        {"base_url": "https://host/v1?key=1"},
        {"base_url": "http://[::1/v1"},
        {"model": ""},
        {"concurrency": 0},
        {"retries": -1},
        {"timeout_s": 0},
        {"price_in": -1.0},
    ],
)
def test_a_config_that_makes_no_sense(changes):
    with pytest.raises(ValueError, match=r"base_url|model|concurrency"):
        EndpointConfig(**({"model": "m", "base_url": "http://127.0.0.1:8000/v1"} | changes))


def test_what_servers_leave_out():
    body = chat("", usage=None, reasoning="thinking").body
    assert (read_reply(body).reasoning_field, read_reply(body).counted) == ("reasoning", False)
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b\ud800"}]
    assert read_reply(chat(parts).body).text == "ab?"
    assert read_reply(chat(None, finish="length").body).cut
    with pytest.raises(UnreadableReplyError, match=r"it is no chat completion, but \{'error'"):
        read_reply({"error": "overloaded"})
    no_list = {"choices": [{"message": {"content": "hi", "tool_calls": {}}}]}
    for body in (no_list, [1], None, {"choices": [{"message": "hi"}]}, native(("add", 3)).body, {"choices": []}):
        with pytest.raises(UnreadableReplyError, match="no chat completion"):
            read_reply(body)


def test_what_servers_add():
    """OpenAI's own class of a chat completion refuses each of these; servers in use send them."""
    body = native(("add", None)).body | {"service_tier": "on_demand", "usage": {"prompt_tokens": 3}}
    body["choices"][0]["finish_reason"] = "abort"
    del body["id"], body["choices"][0]["message"]["tool_calls"][0]["id"]
    assert read_reply(body).calls == (NativeCall("", "add", ""),)
    assert not read_reply(body).counted
