"""Attempt of a teacher at one task, and the expert trace made of it (METHOD section 6).

:func:`attempt_task` runs the same tool loop as a rollout of the policy. :func:`judge_attempt` applies the paper's
filters: an attempt becomes a trace, or is dropped for a reason.
"""

import asyncio
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from typing import Any

from pact_lightning.environments.protocol import Environment, ToolResult
from pact_lightning.environments.tool_calls import (
    ToolThreads,
    ToolTimeoutError,
    cut_response,
    failure,
    leave_environment,
    left_with,
    run_tool,
    start_environment,
)
from pact_lightning.teacher.endpoint import Endpoint, RequestFailedError, Usage
from pact_lightning.teacher.turn import (
    CallFormat,
    TeacherTurn,
    follow_up_message,
    read_teacher_turn,
    response_messages,
    teacher_messages,
)
from pact_lightning.traces.leak import leak_reasons, trace_problems
from pact_lightning.traces.replay import EnvironmentFailedError
from pact_lightning.traces.segmentation import segment_reasoning, turn_pattern
from pact_lightning.traces.verdict import can_be_verified, verified_by, without_wrong_answer
from pact_lightning.types.prompt import ToolSchema, UserTurn
from pact_lightning.types.task import Task
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trace import Chunk, ExpertTrace, ExpertTurn, TurnPattern
from pact_lightning.utils.errors import named_failure

KEPT = "kept"
_log = logging.getLogger(__name__)


class CannotBeVerifiedError(Exception):
    """Task without reference answer, expected answers and reward: nothing can verify its solution."""


class Ending(StrEnum):
    """Endings of an attempt."""

    ANSWERED = "answered"
    MAX_TURNS = "max_turns"
    MALFORMED_TURN = "malformed_turn"
    UNKNOWN_TOOL = "unknown_tool"
    REQUEST_REFUSED = "request_refused"


@dataclass(frozen=True)
class TeacherLimits:
    """Limits of an attempt, named as those of :class:`~pact_lightning.RolloutLimits`.

    Attributes:
        max_turns: Most assistant turns [P]: 10.
        max_response_characters: Length above which a tool response is cut, with a mark.
        tool_timeout_s: Seconds that one tool call may take; after that its response is an error.

    Raises:
        ValueError: One of them is not positive.
    """

    max_turns: int = 10
    max_response_characters: int = 20_000
    tool_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if self.max_turns < 1 or self.max_response_characters < 1 or self.tool_timeout_s <= 0:
            raise ValueError("max_turns, max_response_characters and tool_timeout_s must be positive")


@dataclass(frozen=True, slots=True)
class AttemptTurn:
    """Turn of a teacher with the responses to its calls.

    Attributes:
        turn: The turn.
        responses: One observation per call.
        errors: Per response, true if it reports a failure.
    """

    turn: TeacherTurn
    responses: tuple[str, ...] = ()
    errors: tuple[bool, ...] = ()


@dataclass(slots=True)
class Attempt:
    """Finished attempt.

    Attributes:
        ending: Its ending.
        detail: One sentence on an ending that is a failure.
        messages: The dialogue, in OpenAI format.
        turns: The good turns, in order; a turn that ended the attempt as a failure is in ``messages`` only.
        replies: Number of turns that released a follow-up of the user.
        usage: The usage of its requests.
        environment_reward: The result of the environment's own ``reward()``, if it has one.
    """

    ending: Ending = Ending.ANSWERED
    detail: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)
    turns: list[AttemptTurn] = field(default_factory=list)
    replies: int = 0
    usage: Usage = field(default_factory=Usage)
    environment_reward: float | None = None

    @property
    def final_answer(self) -> str | None:
        """Text of the answer to the last user turn; ``None`` without one."""
        return self.turns[-1].turn.answer if self.ending is Ending.ANSWERED and self.turns else None

    @property
    def executed(self) -> list[tuple[str, str]]:
        """Tool name and response of every call, in order."""
        return [
            (call["name"], response)
            for entry in self.turns
            for call, response in zip(entry.turn.calls, entry.responses, strict=True)
        ]


async def attempt_task(
    task: Task,
    endpoint: Endpoint,
    tools: ToolThreads,
    *,
    limits: TeacherLimits,
    call_format: CallFormat = "native",
    seed: int = 0,
    send_reasoning: bool = True,
) -> Attempt:
    """Let the teacher try a task once.

    A call that fails is an observation, as in training. A malformed turn or an unknown tool ends the attempt [D]: the
    paper's filters would drop its trace in any case, so further turns would be paid for nothing.

    Args:
        task: The task.
        endpoint: The teacher, open.
        tools: The threads that run the calls.
        limits: The attempt's limits.
        call_format: Format of the tool calls.
        seed: Seed of the environment.
        send_reasoning: See :class:`~pact_lightning.teacher.generate.TeacherConfig`.

    Raises:
        RequestFailedError: The endpoint did not answer, or refused the very first request.
        EndpointError: The endpoint cannot be used.
        EnvironmentFailedError: The environment does not start.
        CannotBeVerifiedError: Nothing can verify a solution of the task; the teacher was not asked.
    """
    attempt = Attempt(messages=teacher_messages(task, call_format))
    (starting,) = tools.submit(threading.Lock(), [partial(start_environment, task.prompt, seed)])
    error = (await _settled(starting)).exception()
    if error is not None:  # the user's code: any failure
        raise EnvironmentFailedError(f"The environment cannot be started: {named_failure(error)}") from error
    environment: Environment = starting.result()
    loop = _Loop(task, attempt, environment, endpoint, tools, limits, call_format, send_reasoning)
    try:
        if not can_be_verified(task, environment):
            raise CannotBeVerifiedError(
                "There is no reference answer, no expected answers, and no reward of the environment to verify it by."
            )
        await loop.run()
    finally:
        await loop.leave()
    return attempt


@dataclass(slots=True)
class _Loop:
    task: Task
    attempt: Attempt
    environment: Environment
    endpoint: Endpoint
    tools: ToolThreads
    limits: TeacherLimits
    call_format: CallFormat
    send_reasoning: bool
    busy: threading.Lock = field(default_factory=threading.Lock)

    async def run(self) -> None:
        attempt = self.attempt
        while len(attempt.turns) < self.limits.max_turns:
            turn = await self._next_turn()
            if turn is None:
                return
            if turn.calls:
                results = await self._call(turn.calls)
                responses = tuple(cut_response(r.text, self.limits.max_response_characters) for r in results)
                attempt.turns.append(AttemptTurn(turn, responses, tuple(result.error for result in results)))
                attempt.messages += response_messages(turn.call_ids, responses, self.call_format)
            else:
                attempt.turns.append(AttemptTurn(turn))
                if attempt.replies == len(self.task.prompt.follow_ups):
                    return
                user = self.task.prompt.follow_ups[attempt.replies]
                attempt.messages.append(follow_up_message(user, self.call_format))
                attempt.replies += 1
        attempt.ending, attempt.detail = Ending.MAX_TURNS, f"No answer after {self.limits.max_turns} turns."

    async def _next_turn(self) -> TeacherTurn | None:
        """Ask for a turn; return ``None`` if it ends the attempt."""
        attempt = self.attempt
        try:
            reply = await self.endpoint.complete(attempt.messages, self._offered_natively())
        except RequestFailedError as error:
            if not (error.refused and attempt.turns):
                raise
            attempt.ending, attempt.detail = Ending.REQUEST_REFUSED, str(error)
            return None
        attempt.usage.add(Usage(1, 0, reply.prompt_tokens, reply.completion_tokens, int(not reply.counted)))
        turn = read_teacher_turn(reply, len(attempt.turns), self.call_format, send_reasoning=self.send_reasoning)
        attempt.messages.append(turn.message)
        if turn.problem:
            attempt.ending, attempt.detail = Ending.MALFORMED_TURN, turn.problem
            return None
        offered = self.task.prompt.tool_names_after(attempt.replies)
        unknown = next((call["name"] for call in turn.calls if call["name"] not in offered), None)
        if unknown is not None:
            attempt.ending, attempt.detail = Ending.UNKNOWN_TOOL, f"There is no tool named {unknown!r}."
            return None
        return turn

    def _offered_natively(self) -> list[ToolSchema]:
        if self.call_format == "text":
            return []
        released: Sequence[UserTurn] = self.task.prompt.follow_ups[: self.attempt.replies]
        return [*self.task.prompt.tools, *(tool for turn in released for tool in turn.tools)]

    async def _call(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        futures = self.tools.submit(self.busy, [partial(run_tool, self.environment, call) for call in calls])
        return [_result(await _settled(future)) for future in futures]

    async def leave(self) -> None:
        """Take the environment's own reward, if it gives one, and let it clean up, within a call's time limit."""
        ended = await asyncio.to_thread(leave_environment, self.environment, self.tools, self.busy)
        self.attempt.environment_reward, failures = left_with([await _settled(future) for future in ended])
        for error in failures:
            _log.warning("the environment of task %s failed after an attempt: %s", self.task.id, named_failure(error))


def _result(future: Future[ToolResult]) -> ToolResult:
    error = future.exception()
    if error is None:
        return future.result()
    return ToolResult(str(error), error=True) if isinstance(error, ToolTimeoutError) else failure(error)


async def _settled(future: Future[Any]) -> Future[Any]:
    """Wait for a future of another thread; its exception stays inside: asyncio cannot carry a ``StopIteration``."""
    done, loop = asyncio.Event(), asyncio.get_running_loop()
    future.add_done_callback(lambda _: None if loop.is_closed() else loop.call_soon_threadsafe(done.set))
    await done.wait()
    return future


def judge_attempt(task: Task, attempt: Attempt, source: str) -> tuple[str, str, ExpertTrace | None]:
    """Apply the paper's rule and filters to an attempt.

    Args:
        task: The task.
        attempt: A teacher's attempt at it.
        source: The trace's origin, for reports.

    Returns:
        The outcome, one sentence on it, and the trace if it is kept. The outcome is ``kept``, or the reason for
        dropping it: an :class:`Ending`, ``no_call``, ``not_verified``, ``follow_ups_left``, ``unclean_response`` or
        ``leak``.
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
    """Make an expert trace of an attempt; its reasoning is segmented by rule.

    An attempt that ended at its limit gives a trace without a final turn.
    """
    turns = [_expert_turn(index, entry, attempt) for index, entry in enumerate(attempt.turns)]
    final = turns.pop() if attempt.final_answer is not None else None
    return ExpertTrace(tuple(turns), final, source)


def with_chunks(trace: ExpertTrace, chunks: Sequence[tuple[Chunk, ...]]) -> ExpertTrace:
    """Replace the chunks of a trace, one tuple per turn.

    Raises:
        ValueError: The new chunks of a turn do not cover its reasoning.
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
