"""Verdict on a replayed trace: kept or dropped, with the reason (METHOD section 6).

A trace is kept if its final answer or its last tool response verifies against the reference (:func:`verified_by`, on
the replayed responses). It is dropped for unknown tools, malformed turns, and role text or tool-call tags in responses
[P].

Three further kinds are dropped [D]: traces whose recorded responses differ from the environment's, since their
reasoning speaks of things that the policy will never see; traces with calls of tools that the environment lacks, or
with failed calls only; and traces that leak (:func:`~pact_lightning.traces.leak.leak_reasons`).

:func:`assess` is the way in: it judges a replayed trace and makes of it the one to train on.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pact_lightning.credit.answers import answers_match, open_answers, solve_scores
from pact_lightning.credit.rewards import extract_answer
from pact_lightning.traces.hard_turns import Annotator, segment_trace
from pact_lightning.traces.leak import TracePlace, TraceProblem, trace_faults, trace_leaks
from pact_lightning.traces.replay import Replay, per_turn, replay_calls, same_response, with_responses
from pact_lightning.types.task import Reference, Task
from pact_lightning.types.trace import ExpertTrace, flatten_calls
from pact_lightning.utils.errors import differing, shortened

OnMismatch = Literal["drop", "replace"]
TRUSTED = "trusted, not verified"
"""The reason of a trace that is kept for its teacher's sake alone."""
_NO_REFERENCE = "no reference answer"
_REMEDIES = (
    "nothing says what is right: give `answer` in the record (in a task file `reference.answer`), name tasks with "
    "their answers by --tasks where you build, or take the teacher's own answer by --trust_teacher true"
)
SOLVED_REWARD = 1.0
"""Least value of an environment's own ``reward()`` that counts as solved."""
BY_ANSWER = "final answer verifies"
BY_RESPONSE = "last tool response verifies"
BY_SUB_ANSWERS = "sub-answers are all solved"
BY_REWARD = "environment's reward"


def can_be_verified(task: Task, environment: object) -> bool:
    """Tell whether a task can be verified: by a reference answer, expected answers, or the environment's reward."""
    reference = task.reference
    has_reward = callable(getattr(environment, "reward", None))
    return reference.answer is not None or bool(reference.sub_answers) or has_reward


def verified_by(
    reference: Reference, final_answer: str | None, calls: Sequence[tuple[str, str]], environment_reward: float | None
) -> str | None:
    """Verify a finished attempt or trace.

    The paper keeps a trace that ends in the right final answer **or** in a last tool response that verifies [P].
    Answers are compared by :func:`~pact_lightning.credit.answers.answers_match`. A response verifies if its whole text,
    or one of the values in its JSON, matches [D]: a reference of ``5`` is not found in ``1500``. A task with expected
    answers is also solved by calls that find all of them in a response of their own tool (FTRL's test) [D]. A task with
    neither is solved by an environment's reward of at least :data:`SOLVED_REWARD` [D].

    Args:
        reference: The task's reference.
        final_answer: Text of the answer turn; ``None`` without one.
        calls: Tool name and response of every call, in order.
        environment_reward: The result of the environment's ``reward()``, if it has one.

    Returns:
        :data:`BY_ANSWER`, :data:`BY_RESPONSE`, :data:`BY_SUB_ANSWERS` or :data:`BY_REWARD`; ``None`` if unsolved.
    """
    answer = (reference.answer or "").strip()
    if answer:
        if final_answer is not None and answers_match(extract_answer(final_answer), answer):
            return BY_ANSWER
        if calls and response_is_answer(calls[-1][1], answer):
            return BY_RESPONSE
    if reference.sub_answers:
        return None if open_answers(calls, reference.sub_answers) else BY_SUB_ANSWERS
    solved = not answer and environment_reward is not None and environment_reward >= SOLVED_REWARD
    return BY_REWARD if solved else None


def without_wrong_answer(trace: ExpertTrace, reference: Reference) -> ExpertTrace:
    """Remove a final answer that is known to be wrong: supervised warm-up must not learn it [D]."""
    answer = (reference.answer or "").strip()
    if not answer or trace.final is None or answers_match(extract_answer(trace.final.answer), answer):
        return trace
    return replace(trace, final=None)


def response_is_answer(response: str, answer: str) -> bool:
    """Tell whether a tool response, or a value in its JSON, is the answer.

    >>> response_is_answer('{"population": {"1950": 1500}}', "1,500"), response_is_answer("1500", "5")
    (True, False)
    """
    if answers_match(response, answer):
        return True
    try:
        value = json.loads(response)
    except (ValueError, RecursionError):
        return False
    return any(answers_match(str(leaf), answer) for leaf in _leaves(value))


def _leaves(value: Any) -> Iterator[Any]:
    waiting = [value]  # a list and no recursion: nothing limits the depth of a response
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, dict):
            waiting += inner.values()
        elif isinstance(inner, list):
            waiting += inner
        elif inner is not None:
            yield inner


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict on a replayed trace.

    Attributes:
        kept: True for a trace to train on.
        reason: The way it verifies, or the reason for dropping it; a short name by which verdicts are counted.
        text: Details, in one sentence; may be empty.
        agreement: Numbers of recorded responses that agree exactly, agree as JSON, and differ. Responses taken from
            the environment in the first place do not count.
        solve_f1: Solve-F1 of the replayed calls, for a task with sub-answers.
        place: The turn or call that the reason is about, if it is about one.
    """

    kept: bool
    reason: str
    text: str = ""
    agreement: tuple[int, int, int] = (0, 0, 0)
    solve_f1: float | None = None
    place: TracePlace | None = None

    def dropped_for(self, problem: TraceProblem) -> "Verdict":
        """Return the verdict on the same trace once this problem is known."""
        return replace(self, kept=False, reason=problem.reason, text=problem.text, place=problem.place)


@dataclass(frozen=True, slots=True)
class Assessed:
    """Task after the assessment of its trace.

    Attributes:
        task: The task with the trace to train on; the task as it was where the trace is dropped.
        verdict: The verdict, leaks apart.
        leaks: The leaks of a kept trace.
        segmented: Number of turns by what segmented them; empty where the chunks were kept.
    """

    task: Task
    verdict: Verdict
    leaks: tuple[TraceProblem, ...] = ()
    segmented: Counter[str] = field(default_factory=Counter)


def assess(
    task: Task,
    trace: ExpertTrace,
    replay: Replay,
    *,
    on_mismatch: OnMismatch = "drop",
    trust_teacher: bool = False,
    taken: int = 0,
    segment: bool = False,
    annotator: Annotator | None = None,
) -> Assessed:
    """Judge a replayed trace, and make of a kept one the trace to train on.

    A kept trace gets the environment's responses where some differ, and loses a final answer that is known to be wrong.
    A trusted teacher's answer becomes the task's reference.

    Args:
        task: The task.
        trace: The trace.
        replay: The replay of the trace's calls.
        on_mismatch: ``drop`` a trace whose recorded responses differ from the replayed ones, or ``replace`` them.
        trust_teacher: Keep a trace that nothing can verify, unless its last call failed.
        taken: Number of last responses that were taken from the environment and not recorded.
        segment: Segment the trace anew before leaks are looked for.
        annotator: The segmenter of hard turns.
    """
    verdict = _judge(task, trace, replay, on_mismatch=on_mismatch, trust_teacher=trust_teacher, taken=taken)
    if not verdict.kept:
        return Assessed(task, verdict)
    if verdict.reason == TRUSTED and trace.final is not None:
        answer = extract_answer(trace.final.answer)
        task = replace(task, reference=replace(task.reference, answer=answer))
    if verdict.agreement[2]:
        trace = with_responses(trace, replay)
    trace = without_wrong_answer(trace, task.reference)
    segmented: Counter[str] = Counter()
    if segment:
        failed = [any(result.error for result in results) for results in per_turn(trace, replay)]
        trace, segmented = segment_trace(task.prompt, trace, failed=failed, annotator=annotator)
    leaks = trace_leaks(trace, task.reference.answer)
    return Assessed(replace(task, trace=trace), verdict, tuple(leaks), segmented)


def verified_task(
    task: Task, *, on_mismatch: OnMismatch = "drop", timeout_s: float = 30.0, trust_teacher: bool = False
) -> tuple[Task, Verdict]:
    """Replay and assess a task's trace; see :func:`assess`.

    Returns:
        The task with the trace to train on, and the verdict, leaks included.

    Raises:
        ImportError: The environment cannot be imported.
        EnvironmentFailedError: It cannot be made or reset.
    """
    if task.trace is None:
        return task, Verdict(False, "no trace")
    replay = replay_calls(task.prompt, flatten_calls(task.trace.turns), timeout_s=timeout_s)
    found = assess(task, task.trace, replay, on_mismatch=on_mismatch, trust_teacher=trust_teacher)
    return found.task, found.verdict.dropped_for(found.leaks[0]) if found.leaks else found.verdict


def _judge(
    task: Task, trace: ExpertTrace, replay: Replay, *, on_mismatch: OnMismatch, trust_teacher: bool, taken: int
) -> Verdict:
    """Judge a trace, leaks apart: these depend on its chunks, which may still be cut anew."""
    calls = flatten_calls(trace.turns)
    recorded = [response for turn in trace.turns for response in turn.responses]
    replayed = [result.text for result in replay.results]
    kinds = [same_response(one, other) for one, other in zip(recorded, replayed, strict=True)]
    compared = kinds[: len(kinds) - taken]
    agreement = (compared.count("exact"), compared.count("json"), compared.count("differs"))
    named = [(call["name"], response) for call, response in zip(calls, replayed, strict=True)]
    verdict = Verdict(False, "", "", agreement, _solve_f1(named, task.reference))
    if on_mismatch == "replace":
        trace = with_responses(trace, replay)
    problem = next(_problems(task, trace, replay), None)
    if problem is not None:
        return verdict.dropped_for(problem)
    final = None if trace.final is None else trace.final.answer
    found = verified_by(task.reference, final, named, replay.reward)
    if found is not None:
        return replace(verdict, kept=True, reason=found)
    reason, text = _unverified(task.reference, final, named, replay.reward)
    if not (trust_teacher and reason == _NO_REFERENCE):
        return replace(verdict, reason=reason, text=text)
    if replay.results and replay.results[-1].error:
        text = (
            f"the last call failed, {shortened(replayed[-1])}, and nothing says that the teacher is right all the same"
        )
        return verdict.dropped_for(TraceProblem(_places(trace)[-1], "last call failed", text))
    return replace(verdict, kept=True, reason=TRUSTED)


def _problems(task: Task, trace: ExpertTrace, replay: Replay) -> Iterator[TraceProblem]:
    """Yield the problems that disqualify a trace, whatever it ends in; the first one is reported."""
    yield from trace_faults(trace, task.prompt.tool_names)
    places, calls = _places(trace), flatten_calls(trace.turns)
    for place, call in zip(places, calls, strict=True):
        if replay.tools and call["name"] not in replay.tools:
            text = f"the environment has no tool {call['name']!r}; its tools are {', '.join(sorted(replay.tools))}"
            yield TraceProblem(place, "tool not in the environment", text)
    replayed = [result.text for result in replay.results]
    if replay.results and all(result.error for result in replay.results):
        text = f"each of the {len(calls)} calls failed; the first, of {calls[0]['name']}, with {shortened(replayed[0])}"
        yield TraceProblem(places[0], "every call failed", text)
    recorded = [response for turn in trace.turns for response in turn.responses]
    for at, (one, other) in enumerate(zip(recorded, replayed, strict=True)):
        if same_response(one, other) == "differs":
            then, now = differing(one, other)
            text = f"call {at} ({calls[at]['name']}): recorded {then}, replayed {now}"
            yield TraceProblem(places[at], "response differs on replay", text)


def _places(trace: ExpertTrace) -> list[TracePlace]:
    """Return the place of each call."""
    return [TracePlace(index, number) for index, turn in enumerate(trace.turns) for number in range(len(turn.calls))]


def _unverified(
    reference: Reference, final: str | None, calls: Sequence[tuple[str, str]], reward: float | None
) -> tuple[str, str]:
    """Return the reason why nothing verifies a trace, by name and in one sentence."""
    if reference.sub_answers:
        left = open_answers(calls, reference.sub_answers)
        answers = ", ".join(f"{shortened(answer.answer)} of {answer.tool}" for answer in left)
        return "sub-answers are unsolved", f"no response holds {answers}"
    if (reference.answer or "").strip():
        given = (
            "there is no final answer" if final is None else f"the final answer is {shortened(extract_answer(final))}"
        )
        last = f", the last response {shortened(calls[-1][1])}" if calls else ""
        text = f"{given}{last}; the reference answer is {shortened(reference.answer or '')}"
        return "neither the final answer nor the last tool response verifies", text
    if reward is not None:
        return "environment's reward is below 1", f"the environment's reward is {reward:g}"
    return _NO_REFERENCE, _REMEDIES


def _solve_f1(calls: Sequence[tuple[str, str]], reference: Reference) -> float | None:
    expected = len(reference.sub_answers)
    if not expected:
        return None
    solved = expected - len(open_answers(calls, reference.sub_answers))
    return solve_scores(expected, len(calls), solved)[2]
