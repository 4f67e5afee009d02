"""The page: template, style and script of ``web/``, and the content, compressed."""

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pact_lightning.report.content import Content

_WEB = "web"


@cache
def _source(name: str) -> str:
    return files(__package__).joinpath(_WEB, name).read_text(encoding="utf-8")


def packed(value: Any) -> bytes:
    """Return a JSON value as compressed ASCII; the same value gives the same bytes."""
    return gzip.compress(json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii"), 6, mtime=0)


def policy(live: bool) -> str:
    """Return the page's content security policy: its own script and style, and nothing from elsewhere."""
    hashes = [
        base64.b64encode(hashlib.sha256(_source(name).encode()).digest()).decode()
        for name in ("report.js", "report.css")
    ]
    connect = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; img-src data:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def page(title: str, made: str, content: Content | None) -> str:
    """Make the page.

    Args:
        title: Its title.
        made: The moment it was made, for the reader.
        content: Its content; ``None`` for a served page, which asks for it.
    """
    environment = Environment(
        loader=PackageLoader(__package__, _WEB), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    blobs: Mapping[str, str] = {}
    runs: list[Mapping[str, Any]] = []
    if content is not None:
        blobs = {"index": _encoded(content.index)}
        blobs |= {key: _encoded(block.value) for key, block in content.blocks.items()}
        runs = content.index["runs"]
    return environment.get_template("report.html.jinja").render(
        title=title,
        made=made,
        live=content is None,
        policy=policy(live=content is None),
        style=_source("report.css"),
        script=_source("report.js"),
        blobs=blobs,
        runs=runs,
    )


def _encoded(value: Any) -> str:
    return base64.b64encode(packed(value)).decode("ascii")
