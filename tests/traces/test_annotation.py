"""Hard turns are told from easy ones, an annotator's chunks are used only where they may be, and flags say the rest."""

from collections import Counter
from dataclasses import replace

import pytest

from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.traces.hard_turns import (
    QualityFlag,
    annotation_problem,
    flag_names,
    hard_reasons,
    is_hard,
    quality_flags,
    segment_trace,
)
from pact_lightning.traces.segmentation import segment_reasoning
from pact_lightning.types.trace import Chunk, ChunkType, ExpertTrace, ExpertTurn, TurnPattern

ADD = {"name": "add", "arguments": {"a": 20, "b": 22}}
EASY = "The user wants a sum.\n\nThe add tool is the right tool."
FOREIGN = "Es geht um eine Summe.\n\nDazu nehme ich ein Werkzeug.\n\nUnd das war es."
PROMPT = BundledTasks("validation", 1).load()[0].prompt


def turn(reasoning, *calls):
    return ExpertTurn(segment_reasoning(reasoning, calls or (ADD,)), calls or (ADD,), ("42",) * len(calls or (ADD,)))


@pytest.mark.parametrize(
    ("reasoning", "reasons"),
    [
        ("", []),
        (" \n", []),
        (EASY, []),
        (FOREIGN, ["unsure"]),
        ("Hm, let us see.", ["untyped"]),
        ("I will call add with 20 and 22.", ["preview_first"]),
        ("The user wants a sum. " + "It is a long story, and a dull one. " * 20, ["coarse"]),
        ("The user wants a sum. " + "It is a long story. " * 20, []),
    ],
)
def test_which_turns_are_hard(reasoning, reasons):
    chunks = segment_reasoning(reasoning, [ADD])
    assert hard_reasons(chunks, reasoning, [ADD]) == reasons
    assert is_hard(chunks, reasoning, [ADD]) == bool(reasons)


class Scripted:
    """Gives what it is told, and remembers what it was asked."""

    def __init__(self, chunks):
        self.chunks = chunks
        self.asked = []

    def annotate(self, turn, context):
        self.asked.append((turn.reasoning, context.turn, len(context.earlier)))
        return self.chunks


def test_an_annotator_sees_hard_turns_only():
    good = [Chunk(FOREIGN[:24], ChunkType.TASK_RESTATE), Chunk(FOREIGN[24:], ChunkType.TOOL_SELECTION)]
    annotator = Scripted(good)
    trace = ExpertTrace((turn(EASY), turn(FOREIGN)))
    segmented, counts = segment_trace(PROMPT, trace, annotator=annotator)
    assert annotator.asked == [(FOREIGN, 1, 1)]
    assert [turn.chunks for turn in segmented.turns] == [trace.turns[0].chunks, tuple(good)]
    assert counts == Counter({"rules": 1, "annotator": 1})
    assert segment_trace(PROMPT, trace)[1] == Counter({"rules": 1, "rules, uncertain": 1})
    assert segment_trace(PROMPT, trace, annotator=Scripted(None))[0] == trace


@pytest.mark.parametrize(
    ("chunks", "problem"),
    [
        ([Chunk(FOREIGN[:-1])], "joined, are not the reasoning"),
        ([Chunk(FOREIGN.upper())], "joined, are not the reasoning"),
        ([Chunk(""), Chunk(FOREIGN)], "a chunk is empty"),
        ([], "joined, are not the reasoning"),
    ],
)
def test_chunks_that_cannot_be_used_leave_the_rules(chunks, problem):
    trace = ExpertTrace((turn(FOREIGN),))
    segmented, counts = segment_trace(PROMPT, trace, annotator=Scripted(chunks))
    assert segmented == trace
    (name,) = counts
    assert name.startswith("annotation refused: ")
    assert problem in name


def test_an_annotator_cannot_call_a_literal_call_safe():
    text = "Los.\n\nadd(20, 22)"
    hard = turn(text)
    assert annotation_problem([Chunk(text)], hard) == "chunks that count as safe hold the call literally"
    safe = [Chunk("Los.\n\n"), Chunk("add(20, 22)", ChunkType.EXPLICIT_CALL_PREVIEW)]
    assert annotation_problem(safe, hard) == ""


def test_the_final_turn_and_patterns():
    final = ExpertTurn(segment_reasoning(FOREIGN, []), answer="42", pattern=TurnPattern.FINAL_ANSWER_TURN)
    trace = ExpertTrace((turn(EASY), turn(EASY)), final)
    annotator = Scripted(None)
    segmented, _ = segment_trace(PROMPT, trace, failed=[True, False], annotator=annotator)
    assert annotator.asked == [(FOREIGN, 2, 2)]
    assert segmented.final == final
    assert [turn.pattern for turn in segmented.turns] == [
        TurnPattern.INITIAL_ATTEMPT,
        TurnPattern.RETRY_AFTER_FAILED_CALL,
    ]


def test_flags():
    leaky = replace(turn(EASY), chunks=(Chunk("The answer is 42. "), Chunk("add(20, 22)")))
    trace = ExpertTrace((turn(EASY), turn(""), turn(FOREIGN), turn("I will call add with 20 and 22."), leaky))
    flags = [(flagged.flag, flagged.turn) for flagged in quality_flags(trace, "42")]
    assert flags == [
        (QualityFlag.LEAK, None),
        (QualityFlag.LEAK, None),
        (QualityFlag.NO_REASONING, 1),
        (QualityFlag.UNSURE, 2),
        (QualityFlag.PREVIEW_FIRST, 3),
        (QualityFlag.UNSURE, 4),
    ]
    names = ["leak", "no_reasoning", "preview_in_first_chunk", "unsure_segmentation"]
    assert flag_names(trace, "42") == names
    assert flag_names(ExpertTrace((turn(EASY),)), "42") == []
