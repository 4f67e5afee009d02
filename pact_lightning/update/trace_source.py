"""Traces that stand in ``c^h``: the expert's own, those of the controls, or a successful sibling rollout (METHOD 8).

Everything is drawn from the seed, the task and its position in the run, so that a resumed run shows the same.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Literal

from pact_lightning.credit.group import Group, ShownTrace
from pact_lightning.credit.success import succeeded
from pact_lightning.traces.leak import trace_leaks
from pact_lightning.traces.segmentation import segment_reasoning
from pact_lightning.types.task import Task
from pact_lightning.types.trace import ChunkType, ExpertTrace, ExpertTurn
from pact_lightning.types.trajectory import RolloutTurn, Trajectory
from pact_lightning.utils.seeds import python_random

TraceSource = Literal["expert", "mismatched", "shuffled", "empty", "sibling", "expert_else_sibling"]
"""``expert``: the task's own [P]. ``mismatched``: another training task's. ``shuffled``: its own, turns shuffled.
``empty``: as many tokens as its own, white space all of them. ``sibling``: the group's best successful rollout, without
its answer; ``expert_else_sibling``: that where the task has no trace."""


def shown_traces(group: Group, source: TraceSource, tasks: Sequence[Task], seed: int) -> tuple[ShownTrace, ...] | None:
    """Choose the traces that stand in a group's privileged contexts.

    ``shuffled`` moves whole turns, since tokens in disorder would be no chat at all: what is lost is the order of the
    work alone. A trace of one turn cannot be shuffled and is left out.

    No rollout is scored under itself: the one that serves as sibling is scored under the second best successful
    rollout, and under the prompt alone where there is none.

    Args:
        group: The group.
        source: Where its traces come from.
        tasks: The training tasks, for ``mismatched``.
        seed: Seed of what is drawn.

    Returns:
        The traces, each with its rollouts; rollouts in none of them are scored under the prompt. ``None`` for the
        task's own trace.
    """
    own = group.task.trace
    if source == "expert" or (source == "expert_else_sibling" and own is not None and own.turns):
        return None
    everyone = tuple(range(len(group.trajectories)))
    if source in ("sibling", "expert_else_sibling"):
        return _siblings(group)
    if own is None or not own.turns:
        return ()
    if source == "empty":
        return (ShownTrace(own, everyone, blank=True),)
    draw = python_random(source, seed, group.task.id, group.position)
    if source == "mismatched":
        room = len(group.task.prompt.follow_ups)
        others = [
            task.trace
            for task in tasks
            if task.id != group.task.id and task.trace is not None and task.trace.turns and task.trace.replies <= room
        ]
        return (ShownTrace(draw.choice(others), everyone),) if others else ()
    if len(own.turns) < 2:
        return ()
    order = list(range(len(own.turns)))
    while order == sorted(order):
        draw.shuffle(order)
    return (ShownTrace(replace(own, turns=tuple(own.turns[turn] for turn in order)), everyone),)


def _siblings(group: Group) -> tuple[ShownTrace, ...]:
    found = [
        (sample, trace)
        for sample in sorted(range(len(group.trajectories)), key=lambda sample: (-group.rewards[sample], sample))
        if succeeded(group.trajectories[sample], group.task)
        and (trace := trace_of_rollout(group.trajectories[sample], group.task)).turns
    ]
    if not found:
        return ()
    best, trace = found[0]
    shown = [ShownTrace(trace, tuple(sample for sample in range(len(group.trajectories)) if sample != best))]
    if len(found) > 1:
        shown.append(ShownTrace(found[1][1], (best,)))
    return tuple(part for part in shown if part.rollouts)


def trace_of_rollout(trajectory: Trajectory, task: Task) -> ExpertTrace:
    """Turn a rollout into a trace: its calls that could be read, and never its final answer.

    Reasoning that states the answer, or the call, is left out as a leak.

    Args:
        trajectory: The rollout.
        task: Its task.
    """
    turns = [turn for turn in map(_expert_turn, trajectory.turns) if turn is not None]
    trace = ExpertTrace(tuple(turns), source="sibling")
    leaks = {problem.place.turn for problem in trace_leaks(trace, task.reference.answer)}
    kept = [replace(turn, chunks=()) if number in leaks else turn for number, turn in enumerate(trace.turns)]
    return replace(trace, turns=tuple(kept))


def _expert_turn(turn: RolloutTurn) -> ExpertTurn | None:
    pairs = [(entry.call, said) for entry, said in zip(turn.parsed, turn.responses, strict=False) if entry.call]
    calls, responses = tuple(call for call, _ in pairs), tuple(said for _, said in pairs)
    whole = segment_reasoning(turn.reasoning, calls)
    chunks = tuple(takewhile(lambda chunk: chunk.type is not ChunkType.FINAL_ANSWER_GROUNDING, whole))
    if calls:
        return ExpertTurn(chunks, calls, responses)
    return None if turn.user is None else ExpertTurn(chunks, reply=turn.answer)
