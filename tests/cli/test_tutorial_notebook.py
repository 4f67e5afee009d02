"""The notebook of the tutorial: it is the page, and it runs."""

import os
import sys
from pathlib import Path

import pytest
import tutorial_notebook


def test_the_notebook_is_that_of_the_page():
    again = "PYTHONPATH=tests python tests/tutorial_notebook.py"
    assert tutorial_notebook.NOTEBOOK.read_text(encoding="utf-8") == tutorial_notebook.written(), f"run: {again}"


def test_every_block_of_the_page_is_a_cell():
    page = "# T\n\nA [link](b.md).\n\n<!-- file: a.py -->\n```python\nx = 1\n```\n"
    page += "\n<!-- run -->\n```sh\ntrue\n```\n\nEnd.\n"
    assert list(tutorial_notebook.cells(page)) == [
        ("markdown", "# T\n\nA link."),
        ("code", "%%writefile a.py\nx = 1"),
        ("code", "%%sh\ntrue"),
        ("markdown", "End."),
    ]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_notebook_runs(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    root = Path(__file__).resolve().parent.parent.parent
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"])
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setenv("MPLBACKEND", "agg")  # the kernel's own backend is not installed where the commands are
    book = nbformat.read(tutorial_notebook.NOTEBOOK, as_version=4)
    nbformat.validate(book)
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "runs" / "office" / "version_0" / "metrics.csv").is_file()
