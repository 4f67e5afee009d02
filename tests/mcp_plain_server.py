"""A server of few lines and no SDK: the first protocol version, and whatever a server may do wrong on a pipe.

Arguments: what to do wrong (``garbage``, ``twice``, ``deaf``, ``pages``, ``nothing``, ``loose``, ``wrong``) or
``well``; and a file: while it
is there, the server ends in every call (its text is ``die``) or leaves it without an answer (any other text).
"""

import json
import sys
from pathlib import Path

FORM = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
LOOSE_TOOLS = [
    {"name": "echo", "inputSchema": {"properties": {"text": True}, "required": None}, "outputSchema": {"$ref": "#/no"}},
    {"name": "number", "inputSchema": None, "outputSchema": NUMBER},
    None,
]
LOOSE_ANSWERS = {
    "no structured": {"content": [{"type": "text", "text": "42"}]},
    "other structured": {"content": [], "structuredContent": {"n": "many"}},
    "no content": {"structuredContent": {"n": 1}},
    "a list": {"content": None, "structuredContent": [1, 2]},
    "null flag": {"content": [{"type": "text", "text": None}, {"type": "text", "text": "b"}], "isError": None},
    "unknown block": {"content": [{"type": "text", "text": "a"}, {"type": "video", "data": "QQ=="}]},
    "half a character": {"content": [{"type": "text", "text": "a\ud800b"}]},
    "not a number": {"content": [], "structuredContent": {"n": float("nan")}},
    "failed": {"content": [{"type": "text", "text": "no such row"}], "isError": True},
}


def answer(request, mode):
    method = request["method"]
    if method == "initialize":
        info = {"name": "plain", "version": "1"}
        return {"protocolVersion": "2024-11-05", "capabilities": {"tools": {}}, "serverInfo": info}
    if method == "tools/list":
        tools = [{"name": "echo", "description": "Repeats.", "inputSchema": FORM}]
        if mode == "pages":
            page = int(request.get("params", {}).get("cursor") or 0)
            tools = [{**tools[0], "name": f"echo{page}"}]
            return {"tools": tools, "nextCursor": str(page + 1)} if page < 3 else {"tools": tools}
        if mode == "loose":
            return {"tools": LOOSE_TOOLS}
        if mode == "wrong":
            return {"tools": [*tools, {"name": "odd", "inputSchema": {"type": "string"}}]}
        return {"tools": [] if mode == "nothing" else tools * 2 if mode == "twice" else tools}
    if method == "tools/call":
        text = request["params"]["arguments"]["text"]
        if text in LOOSE_ANSWERS and mode == "loose":
            return LOOSE_ANSWERS[text]
        if text == "refuse":
            return {"content": [], "isError": True}
        if text == "bad":
            return {"content": "this is not a list"}
        return {"content": [{"type": "text", "text": text}]}
    return None


def main(mode, disturbed=None):
    if mode == "garbage":
        print("Starting up...\n{'not': 'json'}\n\n[1, 2]\n\x00\x01", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "id" not in request or mode == "deaf":
            continue
        if request["method"] == "tools/call" and disturbed:
            if Path(disturbed).exists():
                if Path(disturbed).read_text() == "die":
                    sys.exit(3)
                continue
            request["params"]["arguments"].setdefault("text", "nothing said")  # policies call whatever they like
        result = answer(request, mode)
        failed = {"error": {"code": -32601, "message": "no such method"}}
        if mode == "garbage":
            print(f"DEBUG {request['method']}", flush=True)
        if result is not None and "no UTF-8" in json.dumps(result):
            answered = json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result})
            sys.stdout.buffer.write(answered.encode().replace(b"no UTF-8", b"caf\xe9") + b"\n")
            sys.stdout.buffer.flush()
            continue
        head = {"jsonrpc": "2.0", "id": request["id"]}
        print(json.dumps({**head, **(failed if result is None else {"result": result})}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
