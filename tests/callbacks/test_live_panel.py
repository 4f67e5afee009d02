"""The live panel: what it says of a rollout, and where it keeps quiet."""

import io

import pytest
from hand_made import quiet_trainer
from rich.console import Console

from pact_lightning.callbacks.live_panel import LivePanel, panel
from pact_lightning.types.tool_call import ParsedCall, ToolCall
from pact_lightning.types.trajectory import RolloutTurn, StopReason, Trajectory


def printed(renderable):
    console = Console(file=io.StringIO(), width=130)
    console.print(renderable)
    return console.file.getvalue()


def test_a_rollout_is_told_in_brief_and_its_text_is_no_control_sequence():
    call = ParsedCall(ToolCall(name="look", arguments={"at": "x" * 500}), "")
    turns = [
        RolloutTurn("", parsed=(call,), responses=("\x1b[2J[bold]\x07" + "y" * 500,), errors=(False,)),
        RolloutTurn("", parsed=(ParsedCall(None, "not closed"),), responses=("not closed",), errors=(True,)),
    ]
    trajectory = Trajectory("task-1", 0, (), turns=turns, stop_reason=StopReason.MAX_TURNS, tool_calls=1)
    text = printed(panel(2, 7, {"val/answer_correct": 0.5, "train/loss": 1.0}, trajectory))
    assert "phase 3 of 7 · validation 50%" in text
    assert "task-1: 2 turns, 1 call, max_turns" in text
    assert "malformed call -> not closed" in text
    assert "\x1b" not in text
    assert "\x07" not in text
    assert len(text.splitlines()) == 6, "a long text takes one line"
    assert "phase 1" in printed(panel(0, -1, {}, None))
    assert "phase 1 of" not in printed(panel(0, -1, {}, None))


@pytest.mark.parametrize(
    ("ci", "terminal", "shown"), [(None, True, True), ("true", True, False), (None, False, False), ("", True, True)]
)
def test_nothing_is_shown_where_nobody_looks(monkeypatch, ci, terminal, shown):
    monkeypatch.delenv("CI", raising=False)
    if ci is not None:
        monkeypatch.setenv("CI", ci)
    bar = LivePanel(console_kwargs={"file": io.StringIO(), "force_terminal": terminal})
    bar.setup(quiet_trainer(), None, "fit")
    assert bar.is_enabled is shown
