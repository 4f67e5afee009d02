"""From a teacher's attempt to an expert trace, or to the reason why it becomes none (METHOD section 6)."""

from collections.abc import Sequence
from dataclasses import replace

from pact_lightning.tasks.schema import Task
from pact_lightning.traces.leak import leak_reasons, trace_problems
from pact_lightning.traces.schema import Chunk, ExpertTrace, ExpertTurn, TurnPattern
from pact_lightning.traces.segmentation import segment_reasoning, turn_pattern
from pact_lightning.traces.teacher_attempt import Attempt, AttemptTurn, Ending
from pact_lightning.traces.verification import verified_by, without_wrong_answer

KEPT = "kept"


def judge_attempt(task: Task, attempt: Attempt, source: str) -> tuple[str, str, ExpertTrace | None]:
    """Applies the paper's rule and filters.

    Args:
        task: The task.
        attempt: A teacher's attempt at it.
        source: What the trace will say of where it comes from.

    Returns:
        The outcome (``kept``, or why not: an :class:`~pact_lightning.traces.teacher_attempt.Ending`, ``no_call``,
        ``not_verified``, ``follow_ups_left``, ``unclean_response``, ``leak``), one sentence on it, and the trace if
        it is kept.
    """
    if attempt.ending not in (Ending.ANSWERED, Ending.MAX_TURNS):
        return attempt.ending, attempt.detail, None
    if not attempt.executed:
        return "no_call", "The teacher called no tool.", None
    if attempt.replies < len(task.prompt.follow_ups):
        return "follow_ups_left", "The teacher did not get to the last user turn.", None
    if not verified_by(task.reference, attempt.final_answer, attempt.executed, attempt.environment_reward):
        if attempt.ending is Ending.MAX_TURNS:
            return attempt.ending, attempt.detail, None
        return "not_verified", f"The answer {(attempt.final_answer or '')[-200:]!r} does not verify.", None
    trace = without_wrong_answer(trace_of(attempt, source), task.reference)
    problems = trace_problems(trace, task.prompt.tool_names)
    if problems:
        return "unclean_response", problems[0], None
    leaks = leak_reasons(trace, task.reference.answer)
    return ("leak", leaks[0], None) if leaks else (KEPT, "", trace)


def trace_of(attempt: Attempt, source: str) -> ExpertTrace:
    """The attempt as an expert trace; its reasoning is cut into chunks by rule.

    A last turn that calls tools, where the attempt ended at its limit, is part of it; then there is no final turn.
    """
    turns = [_expert_turn(index, entry, attempt) for index, entry in enumerate(attempt.turns)]
    final = turns.pop() if attempt.final_answer is not None else None
    return ExpertTrace(tuple(turns), final, source)


def with_chunks(trace: ExpertTrace, chunks: Sequence[tuple[Chunk, ...]]) -> ExpertTrace:
    """The trace with other chunks, one tuple per turn; they must cover the same reasoning.

    Raises:
        ValueError: They do not.
    """
    turns = []
    for index, (turn, given) in enumerate(zip(trace.turns, chunks, strict=True)):
        if "".join(chunk.text for chunk in given) != turn.reasoning:
            raise ValueError(f"the chunks of turn {index} do not cover its reasoning once and in order")
        failed = turn.pattern is TurnPattern.RETRY_AFTER_FAILED_CALL
        turns.append(replace(turn, chunks=given, pattern=turn_pattern(index, failed, given, is_final=False)))
    return replace(trace, turns=tuple(turns))


def _expert_turn(index: int, entry: AttemptTurn, attempt: Attempt) -> ExpertTurn:
    turn = entry.turn
    chunks = segment_reasoning(turn.reasoning, turn.calls)
    last = index == len(attempt.turns) - 1
    is_final = last and attempt.final_answer is not None
    failed = index > 0 and any(attempt.turns[index - 1].errors)
    pattern = turn_pattern(index, failed, chunks, is_final)
    if is_final:
        return ExpertTurn(chunks, pattern=pattern, answer=turn.answer)
    if not turn.calls:
        return ExpertTurn(chunks, pattern=pattern, reply=turn.answer)
    return ExpertTurn(chunks, turn.calls, entry.responses, pattern)
