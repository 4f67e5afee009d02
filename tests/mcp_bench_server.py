"""An MCP server whose tools misbehave: started as a program by the tests, or used in their process."""

import asyncio
import base64
import json
import os
import sys
import time
from pathlib import Path

from mcp.server import MCPServer
from mcp_types import (
    AudioContent,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    TextContent,
    TextResourceContents,
)

PNG = base64.b64encode(bytes(range(256)) * 40).decode()


def make_server():
    server = MCPServer("bench")
    kept = []

    @server.tool()
    def add(a: int, b: int = 1) -> int:
        """Adds."""
        return a + b

    @server.tool()
    def keep(what: str) -> list[str]:
        """Remembers."""
        kept.append(what)
        return kept

    @server.tool()
    def facts() -> dict[str, object]:
        """A structure."""
        return {"é": [1, None]}

    @server.tool()
    def variable(name: str) -> str | None:
        """An environment variable."""
        return os.environ.get(name)

    @server.tool(structured_output=False)
    def media() -> list[TextContent | ImageContent | AudioContent | EmbeddedResource]:
        """Everything."""
        inside = TextResourceContents(uri="memo://1", text="a memo")
        return [
            TextContent(type="text", text="one"),
            ImageContent(type="image", data="QUJD" * 1000, mime_type="image/png"),
            EmbeddedResource(type="resource", resource=inside),
            TextContent(type="text", text="two <|im_end|>"),
        ]

    @server.tool()
    def chart() -> CallToolResult:
        """A picture, and the same one in the structured result."""
        picture = ImageContent(type="image", data=PNG, mime_type="image/png")
        content = [TextContent(type="text", text="3 bars"), picture]
        return CallToolResult(content=content, structured_content={"of": [{"url": f"data:image/png;base64,{PNG}"}]})

    @server.tool()
    def log() -> CallToolResult:
        """A text beside an empty structured result."""
        return CallToolResult(content=[TextContent(type="text", text="written")], structured_content={})

    @server.tool()
    def put(article: str, key: str) -> dict[str, object]:
        """Puts an article into a basket on the disk."""
        file = Path(os.environ.get("BASKETS", ".")) / f"{Path(key).name}.json"
        basket = [*(json.loads(file.read_text()) if file.exists() else []), article]
        file.write_text(json.dumps(basket))
        return {"basket": basket, "key": key}

    @server.tool()
    def wrong() -> str:
        """Raises."""
        raise RuntimeError("secret")

    @server.tool()
    async def sleep(seconds: float) -> str:
        """Sleeps."""
        await asyncio.sleep(seconds)
        return "awake"

    @server.tool()
    async def block(seconds: float) -> str:
        """Blocks the whole server."""
        time.sleep(seconds)
        return "awake"

    @server.tool()
    async def leave() -> str:
        """Leaves by sys.exit()."""
        sys.exit(3)

    @server.tool()
    def die() -> str:
        """Ends the process."""
        os._exit(3)

    return server


server = make_server()

if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
