"""The tutorial as a notebook; writes it anew: ``PYTHONPATH=tests python tests/tutorial_notebook.py``."""

import json
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
NOTEBOOK = DOCS / "tutorial.ipynb"

_BLOCK = re.compile(r"^<!-- (?:run|file: (?P<name>\S+)) -->\n```(?P<language>\w+)\n(?P<text>.*?)^```$\n?", re.S | re.M)


def cells(page):
    """A page's cells: its text, files to write, and programs to run."""
    place = 0
    for block in _BLOCK.finditer(page):
        yield from _text(page[place : block.start()])
        magic = f"%%writefile {block['name']}\n" if block["name"] else {"python": "", "sh": "%%sh\n"}[block["language"]]
        yield "code", magic + block["text"].rstrip("\n")
        place = block.end()
    yield from _text(page[place:])


def _text(text):
    # Links to other pages lead nowhere from a notebook that stands alone.
    text = re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"\1", text).strip()
    if text:
        yield "markdown", text


def notebook(page):
    """A page as a notebook of format 4.5."""
    found = []
    for number, (kind, text) in enumerate(cells(page)):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.splitlines(keepends=True)}
        found.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": found, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def written():
    """The notebook of the tutorial as it stands in its file."""
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    return json.dumps(notebook(page), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(written(), encoding="utf-8")
