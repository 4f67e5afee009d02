"""Rewards of FTRL and ToolRL, for comparison with the paper's (METHOD section 8).

FTRL rewards a turn for the sub-questions that its calls newly solve. ToolRL gives a point for the format, and up to
three for the fit of the calls with the reference.
"""

import json
from collections import Counter
from collections.abc import Collection, Sequence

from pact_lightning.credit.answers import open_answers, plain
from pact_lightning.credit.matching import json_equal
from pact_lightning.types.task import SubAnswer
from pact_lightning.types.tool_call import ToolCall

STRAY_TAGS = ("<tool_call>", "</tool_call>", "<tool_parsed_response>")
"""Marks of a call in a text without a readable call [C]; the last one is spelled as in FTRL's code."""
_TOOLRL_RANGE = 6.0
_TOOLRL_LOWEST = -3.0


def ftrl_rewards(
    turn_calls: Sequence[Sequence[tuple[str, str | None]]],
    texts: Sequence[str],
    sub_answers: Sequence[SubAnswer],
    answer: str | None,
    *,
    malformed: Sequence[int] | None = None,
) -> list[float]:
    """Compute FTRL's reward of every turn of one rollout.

    A turn of ``p`` calls, of which ``t`` solve a sub-question that was open before, earns ``2t / (p + 1)`` [C]. A turn
    without a call earns -0.5 if it is empty, -0.3 if it holds stray call marks, ``1 / (1 + u)`` with ``u`` open
    sub-questions if its text holds the answer, 0.5 if nothing is open any more, else 0 [C].

    FTRL scores single messages, each with its own set of open sub-questions. The rest is ours [D]:

    - Over a rollout the open set is carried from turn to turn, and "nothing is open any more" is read off it. A task
      without expected answers never earns that 0.5.
    - A malformed call beside readable ones counts in ``p``. A turn whose calls are all malformed has stray marks.
    - A call that was never run (the rollout ended first) counts in ``p`` and solves nothing.
    - A turn that replies to one of several user turns is scored like the answer turn.
    - A reference answer that is empty once commas and white space are gone is held by no text.

    Args:
        turn_calls: Tool name and response of each turn's readable calls, in order, ``[T]``; ``None`` for the response
            of a call that was never run.
        texts: Text of each turn after the reasoning, ``[T]``; read only in turns without a readable call.
        sub_answers: Tool and expected answer of every sub-question.
        answer: The known final answer, or ``None``.
        malformed: Number of malformed calls of each turn, ``[T]``; none by default.

    Returns:
        One reward per turn, ``[T]``, in ``[-0.5, 2)``.

    Raises:
        ValueError: The sequences differ in length, or a number of malformed calls is negative.

    >>> expected = [SubAnswer("age", "800")]
    >>> ftrl_rewards([[("age", "800"), ("age", "none")], []], ["", "It is 800."], expected, "800")
    [0.6666666666666666, 1.0]
    """
    broken = [0] * len(turn_calls) if malformed is None else list(malformed)
    if not len(turn_calls) == len(texts) == len(broken) or any(count < 0 for count in broken):
        raise ValueError(
            f"give calls, text and a number of malformed calls >= 0 for each turn; got {len(turn_calls)} turns of "
            f"calls, {len(texts)} texts and {broken} malformed calls"
        )
    still_open = list(sub_answers)
    rewards = []
    for calls, text, bad in zip(turn_calls, texts, broken, strict=True):
        if calls:
            left = open_answers([(tool, said) for tool, said in calls if said is not None], still_open)
            rewards.append(2.0 * (len(still_open) - len(left)) / (len(calls) + bad + 1))
            still_open = left
        else:
            finished = bool(sub_answers) and not still_open
            rewards.append(-0.3 if bad else _text_reward(text, answer, len(still_open), finished))
    return rewards


def _text_reward(text: str, answer: str | None, unsolved: int, finished: bool) -> float:
    if not text.strip():
        return -0.5
    if any(tag in text for tag in STRAY_TAGS):
        return -0.3
    wanted = "" if answer is None else plain(answer).strip()
    if wanted and wanted in plain(text):
        return 1.0 / (1 + unsolved)
    return 0.5 if finished else 0.0


def toolrl_score(predicted: Sequence[ToolCall], reference: Sequence[ToolCall]) -> float:
    """Score the fit of the calls with the reference, from 0 to :func:`toolrl_max`.

    The score is a sum of two parts [C]. The first is the Jaccard index of the tool names, repeated names counted. The
    second adds, for each reference call in order, the best predicted call of its name that no earlier one took: the
    Jaccard index of the argument names plus the number of reference arguments whose value is equal. Names are
    compared exactly, values by :func:`pact_lightning.credit.matching.json_equal` [D]. Ties go to the
    first call in the order of their JSON, so the score does not depend on the order of the predicted calls [D].

    Args:
        predicted: The well-formed calls, in any order.
        reference: Calls that solve the task, in order.

    >>> call = {"name": "add", "arguments": {"a": 1, "b": 2}}
    >>> toolrl_score([call], [call]), toolrl_max([call])
    (4.0, 4.0)
    """
    score = _jaccard([call["name"] for call in predicted], [call["name"] for call in reference])
    free = sorted(predicted, key=lambda call: json.dumps(call, sort_keys=True))
    for wanted in reference:
        fits = [_fit(call, wanted) for call in free]
        best = max(fits, default=0.0)
        if best > 0.0:
            score += best
            del free[fits.index(best)]
    return score


def toolrl_max(reference: Sequence[ToolCall]) -> float:
    """Return the score of the reference itself: ``1 + sum(1 + number of arguments)`` [C]."""
    return 1.0 + sum(1.0 + len(call["arguments"]) for call in reference)


def toolrl_correctness(predicted: Sequence[ToolCall], reference: Sequence[ToolCall]) -> float:
    """Compute ``6 * score / max - 3``, in ``[-3, 3]``; 0 without a reference call [C].

    Args:
        predicted: The well-formed calls.
        reference: Calls that solve the task; empty where none are known.
    """
    if not reference:
        return 0.0
    return _TOOLRL_RANGE * toolrl_score(predicted, reference) / toolrl_max(reference) + _TOOLRL_LOWEST


def toolrl_rewards(
    turn_calls: Sequence[Sequence[ToolCall]], reference: Sequence[ToolCall], *, well_formed: Sequence[bool]
) -> list[float]:
    """Compute ToolRL's rewards of one rollout: the last turn earns format plus correctness, the others 0.

    ToolRL scores single turns, each against its own reference calls. Here the calls of all turns are compared with the
    task's reference at once, and the format point is earned by rollouts whose turns are all well formed [D]. A
    malformed call is no predicted call; it costs the format point, where ToolRL gives such a turn the lowest
    correctness as well [D]. Nor is a call that was never run [D]. The final answer is not looked at [C].

    Args:
        turn_calls: The well-formed calls of each turn that were run, ``[T]``.
        reference: Calls that solve the task.
        well_formed: Whether each turn has the form that was asked for, ``[T]``.

    Returns:
        One reward per turn, ``[T]``; the last is in ``[-3, 4]``.

    Raises:
        ValueError: ``well_formed`` does not fit the turns.
    """
    if len(well_formed) != len(turn_calls):
        raise ValueError(f"well_formed must hold one entry per turn, {len(turn_calls)} in all; got {len(well_formed)}")
    rewards = [0.0] * len(turn_calls)
    if turn_calls:
        calls = [call for turn in turn_calls for call in turn]
        rewards[-1] = float(all(well_formed)) + toolrl_correctness(calls, reference)
    return rewards


def _fit(predicted: ToolCall, wanted: ToolCall) -> float:
    if predicted["name"] != wanted["name"]:
        return 0.0
    given, arguments = predicted["arguments"], wanted["arguments"]
    equal = sum(name in given and json_equal(given[name], value) for name, value in arguments.items())
    return _jaccard(given, arguments) + equal


def _jaccard(left: Collection[str], right: Collection[str]) -> float:
    """Compute the Jaccard index of two multisets; 1 where both are empty."""
    counts, others = Counter(list(left)), Counter(list(right))  # of a mapping, its keys and not its values
    union = (counts | others).total()
    return (counts & others).total() / union if union else 1.0
