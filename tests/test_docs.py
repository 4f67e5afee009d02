"""README and docs: their links lead somewhere, and the programs in them run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
# A block with a mark in front of it: `run` it, or write it to a `file` of this name.
_BLOCK = re.compile(
    r"^<!-- (?:run|file: (?P<name>[\w.]+)) -->\n```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
# A page that needs an optional package says so.
_NEEDS = re.compile(r"^<!-- needs: (\w+) -->$", re.MULTILINE)
_COMMANDS = {"python": [sys.executable, "-"], "sh": ["sh", "-e", "-s"]}


def _without_blocks(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page):
    broken = []
    for target in _LINK.findall(_without_blocks(page.read_text(encoding="utf-8"))):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(target)
    assert broken == []


def _anchors(page):
    """The headings' anchors as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _without_blocks(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", [page for page in PAGES if _BLOCK.search(page.read_text(encoding="utf-8"))], ids=lambda page: page.name
)
def test_programs_run(page, tmp_path):
    """Blocks of a page run one after the other in one empty folder, as a reader would run them."""
    for module in _NEEDS.findall(page.read_text(encoding="utf-8")):
        pytest.importorskip(module)
    scripts = str(Path(sys.executable).parent)
    environment = os.environ | {
        "PATH": scripts + os.pathsep + os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    for block in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        if block["name"]:
            (tmp_path / block["name"]).write_text(block["text"], encoding="utf-8")
            continue
        run = subprocess.run(
            _COMMANDS[block["language"]],
            input=block["text"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, f"{block['text']}\n{run.stdout[-2000:]}\n{run.stderr[-4000:]}"


def test_marks_are_known():
    """A mistyped mark would silently leave its block out."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        comments = re.findall(r"^<!-- (?:run|file)\b.*?-->", text, re.MULTILINE)
        assert len(comments) == len(_BLOCK.findall(text)), page.name
