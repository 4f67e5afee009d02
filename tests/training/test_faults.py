"""The short version of `make faults` and `make fuzz`, and that both tell what does not hold."""

import importlib
import threading
from pathlib import Path

import fuzz
import pytest
from byte_tokenizer import byte_renderer
from faults import environments, tools
from faults.__main__ import GROUPS
from faults.deadline import HangError, within
from faults.page import write_into_pages
from faults.repeated import expect, repeated
from faults.result import FaultResult
from faults.snippets import SECRET, SNIPPETS, Snippet

pytestmark = pytest.mark.timeout(600)


def test_every_misbehaving_tool_is_a_bounded_observation_and_the_rollout_goes_on(monkeypatch):
    monkeypatch.setenv("TRAINER_SECRET", SECRET)
    results = tools.run(1)
    assert [result.fault for result in results if not result.ok] == []
    assert len(results) == len(SNIPPETS) >= 40


def test_an_environment_with_an_odd_verb_costs_a_response_or_a_rollout_and_is_written():
    results = environments.run(1)
    assert [(result.fault, result.happened) for result in results if not result.ok] == []
    assert len(results) == len(environments.FAULTS)


@pytest.mark.parametrize(
    ("snippet", "told"),
    [
        (Snippet("leaks", f"return '{SECRET}'", False), "LEAK: "),
        (Snippet("should fail", "return 'fine'"), "no error: fine"),
    ],
)
def test_what_does_not_hold_is_told(tmp_path, snippet, told):
    (tmp_path / "secret").write_text(SECRET)
    result = tools._row(byte_renderer([("a", "b")]), snippet, tmp_path / "secret", 2)
    assert not result.ok
    assert (result.times, result.held) == (2, 0)
    assert told in result.happened


def test_every_group_can_be_run_and_has_its_place_on_the_page():
    docs = Path(__file__).parent.parent.parent / "docs"
    page = "".join((docs / name).read_text() for name in ("reliability.md", "resume.md"))
    for name in GROUPS:
        group = importlib.import_module(f"faults.{name}")
        assert callable(group.run)
        assert all(page.count(f"<!-- faults {group.SECTION}: {mark} -->") == 1 for mark in ("begin", "end"))


def test_an_injection_that_does_not_hold_is_counted_and_told():
    def inject(number):
        expect(number != 1, "the second one leaks")
        if number == 2:
            raise HangError("no end")
        return "fine"

    assert repeated("A", "x", 5, inject) == FaultResult("A", "x", 5, 3, "the second one leaks; HANG: no end")
    assert repeated("A", "x", 1, inject) == FaultResult("A", "x", 1, 1, "fine")


def test_a_hang_is_told():
    with pytest.raises(HangError, match="no end within"):
        within(0.05, threading.Event().wait)
    assert within(5, int, "3") == 3
    with pytest.raises(ValueError, match="invalid literal"):
        within(5, int, "x")


def test_tables_are_written_into_their_sections_and_the_rest_stays(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "a\n<!-- faults A: begin -->\nold\n<!-- faults A: end -->\nb\n"
        "<!-- faults B: begin -->\nkept\n<!-- faults B: end -->\n"
    )
    other = tmp_path / "other.md"
    other.write_text("nothing of it\n")
    write_into_pages([other, page], [FaultResult("A", "x|y", 3, 3, "<fine>")], "`me`, today")
    text = page.read_text()
    assert "| x\\|y | 3 | 3 | &lt;fine> |\n\nMade by `me`, today." in text
    assert "old" not in text
    assert "kept" in text
    with pytest.raises(ValueError, match="no place for the faults of 'C'"):
        write_into_pages([page], [FaultResult("C", "x", 1, 1, "y")], "")


@pytest.mark.parametrize("name", fuzz.targets())
def test_a_few_inputs_of_each_fuzzing_target_raise_nothing(name):
    assert fuzz.fuzz(fuzz.targets()[name], 60) == (60, "")


def test_what_an_input_raises_is_told():
    def check(data):
        assert data.draw(fuzz.st.integers()) < 0

    run, raised = fuzz.fuzz(check, 100)
    assert run < 100
    assert "AssertionError" in raised
