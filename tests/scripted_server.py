"""A real HTTP server on 127.0.0.1 that speaks the chat protocol and answers by a script."""

import json
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pact_lightning.teacher.endpoint import EndpointConfig


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A client that is gone before its answer is written: some tests make that happen."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@dataclass
class Answer:
    """One HTTP response; ``cut`` sends so many bytes of the body and breaks the connection."""

    body: object
    status: int = 200
    headers: dict = field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None


SOON = {"retry-after-ms": "1"}


def chat(content="", *, finish="stop", usage=(100, 20), **fields):
    """A chat completion."""
    message = {"role": "assistant", "content": content, **fields}
    body = {"id": "x", "object": "chat.completion", "choices": [{"index": 0, "message": message}]}
    body["choices"][0]["finish_reason"] = finish
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return Answer(body)


def native(*calls, content="", **fields):
    """A completion with native calls: (name, arguments as JSON text)."""
    entries = [
        {"id": f"id-{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for number, (name, arguments) in enumerate(calls)
    ]
    return chat(content, tool_calls=entries, **fields)


class ScriptedServer:
    """Answers ``POST .../chat/completions`` with ``script(request, number)``, where number counts equal requests.

    Attributes:
        requests: The bodies, in order of arrival.
        keys: The authorization headers, in order of arrival.
    """

    def __init__(self, script):
        self.script = script
        self.requests, self.keys = [], []
        self._seen = Counter()
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self._http = _Server(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def answer(self, handler):
        raw = handler.rfile.read(int(handler.headers["content-length"]))
        request = json.loads(raw)
        with self._lock:
            number = self._seen[raw]
            self._seen[raw] += 1
            self.requests.append(request)
            self.keys.append(handler.headers["authorization"])
        answer = self.script(request, number)
        time.sleep(answer.delay)
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        try:
            handler.send_response(answer.status)
            for name, value in {"content-type": "application/json", **answer.headers}.items():
                handler.send_header(name, value)
            handler.send_header("content-length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body if answer.cut is None else body[: answer.cut])
        except OSError:
            return  # the client has given up waiting
        handler.close_connection = handler.close_connection or answer.cut is not None

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()

    def config(self, **changes):
        """An endpoint's config that asks here, without a key."""
        return EndpointConfig(
            **({"model": "scripted", "base_url": self.url, "api_key_env": "", "retries": 2} | changes)
        )


def expert(tasks, call_format="native"):
    """A script that plays the tasks' own expert traces, found by the question, turn by the number of replies so far."""

    def script(request, number):
        asked = next(m["content"] for m in request["messages"] if m["role"] == "user")
        task = next(task for task in tasks if asked.endswith(f"Question: {task.prompt.messages[-1]['content']}"))
        turns = [*task.trace.turns, task.trace.final]
        turn = turns[sum(message["role"] == "assistant" for message in request["messages"])]
        return expert_reply(turn, call_format)

    return script


def expert_reply(turn, call_format="native"):
    """An expert turn as a completion."""
    answer = turn.answer or turn.reply or ""
    if call_format == "native":
        calls = [(call["name"], json.dumps(call["arguments"])) for call in turn.calls]
        if not calls:
            return chat(answer, reasoning_content=turn.reasoning)
        return native(*calls, reasoning_content=turn.reasoning)
    blocks = "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in turn.calls)
    return chat(f"<think>\n{turn.reasoning}\n</think>\n\n{blocks or answer}")
