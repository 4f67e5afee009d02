"""README and docs: their links lead somewhere, and the programs in them run."""

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")  # of pictures too
# A block with a mark in front of it: `run` it, or write it to a `file` of this name.
_BLOCK = re.compile(
    r"^<!-- (?:run|file: (?P<name>[\w.]+)) -->\n```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
# A page that needs an optional package says so.
_NEEDS = re.compile(r"^<!-- needs: (\w+) -->$", re.MULTILINE)
_COMMANDS = {"python": ["python", "-"], "sh": ["sh", "-e", "-s"]}


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


PAGES_WITH_PROGRAMS = [page for page in PAGES if _BLOCK.search(page.read_text(encoding="utf-8"))]
_TURN = re.compile(r"(max_new_tokens_per_turn[:=] ?)\d+")
WHOLE = ("your_method.md", "compare.md")
"""Pages whose turns are short as they are, or have to earn a reward."""
RUNS = [pytest.param(page, page.name not in WHOLE, id=page.name) for page in PAGES_WITH_PROGRAMS]
RUNS += [
    pytest.param(page, False, id=f"{page.stem} as written", marks=pytest.mark.slow)  # `.ci/run` runs the tutorial
    for page in PAGES_WITH_PROGRAMS
    if page.name not in WHOLE and _TURN.search(page.read_text(encoding="utf-8"))
]


def _run_blocks(page, shorter, folder, environment):
    """Runs a page's blocks one after the other in one empty folder, as a reader would; gives what failed, as text.

    Args:
        shorter: Whether turns get a few tokens only.
    """
    text = page.read_text(encoding="utf-8")
    if shorter:
        text = _TURN.sub(r"\g<1>16", text)
    for block in _BLOCK.finditer(text):
        if block["name"]:
            (folder / block["name"]).write_text(block["text"], encoding="utf-8")
            continue
        first, *rest = _COMMANDS[block["language"]]
        run = subprocess.run(
            [shutil.which(first, path=environment["PATH"]), *rest],
            input=block["text"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            return f"{block['text']}\n{run.stdout[-2000:]}\n{run.stderr[-4000:]}"
    return ""


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory, warm_python):
    """Runs of the pages that are asked for, two at a time: each is a row of processes that use one core."""
    asked = [
        (item.callspec.params["page"], item.callspec.params["shorter"])
        for item in request.session.items
        if item.name.startswith("test_programs_run")
        and (request.config.getoption("--slow") or "slow" not in item.keywords)
    ]
    environment = warm_python.environment
    with ThreadPoolExecutor(2) as pool:
        yield {
            (page, shorter): pool.submit(_run_blocks, page, shorter, tmp_path_factory.mktemp(page.stem), environment)
            for page, shorter in asked
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.timeout(900)  # it may wait for the pages before it
@pytest.mark.parametrize(("page", "shorter"), RUNS)
def test_programs_run(page, shorter, runs):
    for module in _NEEDS.findall(page.read_text(encoding="utf-8")):
        pytest.importorskip(module)
    assert runs[page, shorter].result() == ""


def test_marks_are_known():
    """A mistyped mark would silently leave its block out."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        comments = re.findall(r"^<!-- (?:run|file)\b.*?-->", text, re.MULTILINE)
        assert len(comments) == len(_BLOCK.findall(text)), page.name
