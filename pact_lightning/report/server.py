"""Server of the page for this machine alone: what a run has written since is there without a reload."""

import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from pact_lightning.report.content import Content, Reader
from pact_lightning.report.page import packed, page, policy

LOOPBACK = "127.0.0.1"
_NAMES = (LOOPBACK, "localhost")


class ViewServer(ThreadingHTTPServer):
    """Server of some runs' page on the loopback interface.

    It answers only requests that name it by a loopback address, so that no web page can read it under a name of its
    own (DNS rebinding).

    Args:
        reader: Reads the runs.
        title: The page's title.
        port: Its port; 0 takes a free one.

    Raises:
        OSError: The port is taken.
    """

    daemon_threads = True

    def __init__(self, reader: Reader, title: str, port: int = 0) -> None:
        super().__init__((LOOPBACK, port), _Handler)
        self.title = title
        self._reader = reader
        self._lock = threading.Lock()
        self._last: Content | None = None
        self._packed: dict[str, bytes] = {}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a reader who goes away in the middle of an answer."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        """Address of the page."""
        return f"http://{LOOPBACK}:{self.server_port}/"

    def index(self) -> tuple[str, bytes]:
        """Return version and compressed index of the content as it now is."""
        with self._lock:
            content = self._reader.read()
            if self._last is None or content.version != self._last.version:
                self._packed = {key: value for key, value in self._packed.items() if key in content.blocks}
                self._packed["index"] = packed(content.index)
            self._last = content
            return content.version, self._packed["index"]

    def block(self, key: str) -> bytes | None:
        """Return a compressed block; ``None`` where there is none of that name, or no longer."""
        with self._lock:
            content = self._last or self._reader.read()
            if key not in content.blocks:
                return None
            if key not in self._packed:
                self._packed[key] = packed(content.blocks[key].value)
            return self._packed[key]


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    server_version = "pact-lightning"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:  # the name that http.server asks for
        """Answer a request."""
        if self.headers.get("Host") not in [f"{name}:{self.server.server_port}" for name in _NAMES]:
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"this page is for the machine it is served on\n")
            return
        path = unquote(self.path.partition("?")[0])
        if path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", page(self.server.title, "", None).encode())
        elif path == "/index.json":
            self._send_index()
        elif path.startswith("/block/") and (found := self.server.block(path.removeprefix("/block/"))) is not None:
            self._send(HTTPStatus.OK, "application/json", found, {"Content-Encoding": "gzip"})
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"there is no such page\n")

    def _send_index(self) -> None:
        try:
            version, found = self.server.index()
        except (OSError, ValueError) as error:  # a file that is removed or replaced while it is read
            told = f"the run cannot be read right now: {error}\n".encode(errors="replace")
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", told)
            return
        tag = {"ETag": f'"{version}"'}
        if self.headers.get("If-None-Match") == tag["ETag"]:
            self._send(HTTPStatus.NOT_MODIFIED, "application/json", b"", tag)
        else:
            self._send(HTTPStatus.OK, "application/json", found, {"Content-Encoding": "gzip", **tag})

    def _send(self, status: HTTPStatus, kind: str, body: bytes, further: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-cache",
            "Content-Security-Policy": policy(live=True) + "; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            **(further or {}),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a line for each question of a page that asks every few seconds helps nobody."""
