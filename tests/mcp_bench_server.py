"""An MCP server whose tools misbehave: started as a program by the tests, or used in their process."""

import asyncio
import os
import sys
import time

from mcp.server import MCPServer
from mcp_types import AudioContent, EmbeddedResource, ImageContent, TextContent, TextResourceContents


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
