"""A server of few lines and no SDK: the first protocol version, and whatever a server may do wrong on a pipe.

Arguments: what to do wrong (``garbage``, ``twice``, ``deaf``, ``pages``, ``nothing``) or ``well``; and a file: while it
is there, the server ends in every call (its text is ``die``) or leaves it without an answer (any other text).
"""

import json
import sys
from pathlib import Path

FORM = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


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
        return {"tools": [] if mode == "nothing" else tools * 2 if mode == "twice" else tools}
    if method == "tools/call":
        text = request["params"]["arguments"]["text"]
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
        head = {"jsonrpc": "2.0", "id": request["id"]}
        print(json.dumps({**head, **(failed if result is None else {"result": result})}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
