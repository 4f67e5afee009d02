"""The program behind `make bench`: each row in one line, whatever becomes of it, and twenty minutes for all."""

import importlib.util
import json
import os
import time

import pytest

from benchmarks.__main__ import OPTIONAL, ROWS, run_rows
from benchmarks.progress import Progress
from benchmarks.row import FEWEST, Rounds, Row, alternate
from benchmarks.table import heading_line, row_line, write_into_page

QUICK = """
from benchmarks.row import Row, alternate

def run(rounds):
    timings = alternate({"ours": list, "peer": dict}, rounds)
    return Row("quick", 2.0, 4.0, 2.0, 1.5, "at least", timings["ours"].rounds, {"unit": "s"})
"""
ROW_MODULES = {
    "quick": QUICK,
    "wrong": "def run(rounds):\n    raise RuntimeError('the two sides\\ncompute different losses')",
    "killed": "import os\ndef run(rounds):\n    os.kill(os.getpid(), 9)",
    "gone": "import sys\ndef run(rounds):\n    sys.exit(3)",
    "skipped": "from benchmarks.row import SkippedError\ndef run(rounds):\n    raise SkippedError('no CUDA card here')",
    "endless": "import pathlib, subprocess, sys, time\n"
    "def run(rounds):\n"
    "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "    pathlib.Path('child').write_text(str(child.pid))\n"
    "    time.sleep(600)",
}


@pytest.fixture
def few(tmp_path, monkeypatch):
    """A package of rows, in the folder where the command is run."""
    folder = tmp_path / "few"
    folder.mkdir()
    for name, text in ROW_MODULES.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), _root()]))
    return tmp_path


def _root():
    return str(importlib.util.find_spec("benchmarks").submodule_search_locations[0]).removesuffix("benchmarks")


def test_what_becomes_of_a_row_is_one_line_and_the_other_rows_are_kept(few, capfd):
    out = few / "rows.jsonl"
    old = {"bench": "wrong", "settings": {"commit": "old", "seconds": 1}}
    out.write_text(json.dumps(old) + "\n" + json.dumps({**old, "bench": "other"}) + "\n")
    rows = dict.fromkeys(["quick", "wrong", "killed", "gone", "skipped"], 60)
    failed = run_rows(rows, 5, out, "few")
    assert failed == ["wrong", "killed", "gone"]  # what is skipped has not failed
    heading, quick, wrong, killed, gone, skipped, total = capfd.readouterr().out.splitlines()
    assert heading == heading_line()
    assert quick.split() == ["quick", "2", "4", "s", "2", "at", "least", "1.5", "yes"]
    assert wrong.split(maxsplit=1)[1].startswith("failed: RuntimeError: the two sides compute different losses; see ")
    assert "failed: killed by SIGKILL, perhaps for want of memory" in killed
    assert "failed: ended with exit status 3 and no row" in gone
    assert skipped.split(maxsplit=1)[1] == "skipped: no CUDA card here"
    assert total.startswith("5 rows in 0:")
    kept = {row["bench"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert set(kept) == {"quick", "other"}  # a figure that the program no longer makes is not shown as one
    assert {"commit", "date", "seconds", "machine"} <= set(kept["quick"]["settings"])
    assert "Traceback" in (few / "rows" / "wrong.log").read_text()


def test_a_row_that_does_not_end_is_stopped_with_all_that_it_started(few, capfd):
    assert run_rows({"endless": 0.5}, 5, few / "rows.jsonl", "few") == ["endless"]
    assert "failed: stopped after 2 s; it should take 0.5 s" in capfd.readouterr().out
    child = int((few / "child").read_text())
    assert any(_is_gone(child) for _ in range(200)), "the row's own child runs on"


def _is_gone(process):
    time.sleep(0.02)  # its new parent takes a moment to bury it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(("rounds", "run"), [(Rounds(5), 5), (Rounds(5, seconds=0), FEWEST), (Rounds(2, seconds=0), 2)])
def test_rounds_end_with_the_time_of_the_row_but_not_before_three(rounds, run):
    calls = []
    timings = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds)
    assert "".join(calls) == "ab" * (run + 1)  # and one round that does not count
    assert {timing.rounds for timing in timings.values()} == {run}


def test_a_side_that_is_warm_is_not_run_in_vain():
    calls, told = [], []
    sides = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    alternate(sides, Rounds(2, tell=told.append), warm=("b",))
    assert "".join(calls) == "a" + "abab"
    assert told == ["warm-up 1/2", "round 1/2", "round 2/2"]


def test_a_round_that_would_not_end_in_time_is_not_begun():
    rounds = Rounds(most=10, seconds=100, begun=time.monotonic() - 60)
    assert rounds.has_time_for(4, longest=30)
    assert not rounds.has_time_for(4, longest=45)
    assert rounds.has_time_for(2, longest=45)
    assert not rounds.has_time_for(10, longest=0)


def test_all_rows_together_take_twenty_minutes():
    assert sum(ROWS.values()) <= 20 * 60
    for name in ROWS | OPTIONAL:
        assert importlib.util.find_spec(f"benchmarks.{name}"), name


def record(**fields):
    row = Row("shared_prefix_vs_ideal", 1234.5, 0.04567, 12.345, 0.125, "at most", 3, {"unit": "tokens/s"}).record()
    return row | fields


@pytest.mark.parametrize("figure", [0.0, 0.000123, 8.0914, 99.96, 652.4, 14_618.4, 1e7])
def test_a_line_fits_eighty_columns_and_its_columns_stand_under_the_heading(figure):
    line, heading = row_line(record(ours=figure, peer=figure)), heading_line()
    assert len(line) <= 80
    assert line.index("at most") == heading.index("goal")
    assert line.index("tokens/s") == heading.index("unit")


def test_the_page_tells_cases_and_each_rows_commit_and_date(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: begin -->\nold\n<!-- table: end -->\nafter\n")
    machine = {"device": "CPU", "cores": 2, "threads": 2, "torch": "2"}
    settings = {"unit": "s", "goal_is": "at most", "machine": machine, "commit": "abc1234", "date": "2026-11-28"}
    write_into_page(page, [record(settings=settings | {"cases": {"--help": [0.04, 2.0], "fit": [2.2, 2.5]}})])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| abc1234 2026-11-28 |" in text
    assert "every case (s): --help 0.04 and 2, fit 2.2 and 2.5." in text


def test_progress_tells_row_round_and_what_is_left(capfd):
    from rich.console import Console

    with Progress({"first": 100.0, "second": 50.0}, Console(stderr=True)) as progress:
        progress.begin("first")
        progress.tell("round 2/5")
        line = progress.line()
    assert line.startswith("1/2 first, round 2/5; 0:00 elapsed, about 2:")
    assert capfd.readouterr().err.splitlines() == ["1/2 first, set-up; 0:00 elapsed, about 2:29 left"]


@pytest.mark.parametrize("named", ["", "/nowhere/python"])
def test_the_row_beside_vllm_is_skipped_without_vllm(named, tmp_path, capfd, monkeypatch):
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM is installed here")
    monkeypatch.setenv("PACT_VLLM_PYTHON", named)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([_root(), os.environ.get("PYTHONPATH", "")]))
    assert run_rows({"rollout_vs_vllm": 60}, 1, tmp_path / "rows.jsonl") == []
    (line,) = [text for text in capfd.readouterr().out.splitlines() if text.startswith("rollout_vs_vllm")]
    assert "skipped: " in line
    assert "PACT_VLLM_PYTHON" in line
