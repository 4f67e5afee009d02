"""ToolRL's reward: a point for the format, and how well the calls fit the reference (METHOD section 8)."""

import json
from collections import Counter
from collections.abc import Collection, Sequence

from pact_lightning.credit.matching import json_equal
from pact_lightning.dialogue.tool_call import ToolCall

_RANGE = 6.0
_LOWEST = -3.0


def toolrl_score(predicted: Sequence[ToolCall], reference: Sequence[ToolCall]) -> float:
    """How well the calls fit the reference, from 0 to :func:`toolrl_max`.

    The Jaccard index of the tool names, which counts repeated names [C]; and for each reference call, in order, the
    best predicted call of its name that no earlier one took: the Jaccard index of the argument names plus the number
    of reference arguments whose value is equal [C]. Names are compared as they are, values by
    :func:`pact_lightning.credit.matching.json_equal` [D]. Of equally good calls the first in the order of their JSON
    is taken, so that the score does not depend on the order of the predicted calls [D].

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
    """The score of the reference itself: ``1 + sum(1 + number of arguments)`` [C]."""
    return 1.0 + sum(1.0 + len(call["arguments"]) for call in reference)


def toolrl_correctness(predicted: Sequence[ToolCall], reference: Sequence[ToolCall]) -> float:
    """``6 * score / max - 3``, in ``[-3, 3]``; 0 where there is no reference call [C].

    Args:
        predicted: The well-formed calls.
        reference: Calls that solve the task; empty where there are none or they are not known.
    """
    if not reference:
        return 0.0
    return _RANGE * toolrl_score(predicted, reference) / toolrl_max(reference) + _LOWEST


def toolrl_rewards(
    turn_calls: Sequence[Sequence[ToolCall]], reference: Sequence[ToolCall], *, well_formed: Sequence[bool]
) -> list[float]:
    """Rewards of one rollout: 0 but for the last turn, which earns format plus correctness.

    ToolRL scores single turns, each against its own reference calls. Here the calls of all turns are compared with the
    task's reference at once, and the format point is earned by rollouts whose turns are all well formed [D]. A
    malformed call is no predicted call; it costs the format point, where ToolRL gives such a turn the lowest
    correctness as well [D]. The final answer is not looked at [C].

    Args:
        turn_calls: The well-formed calls of each turn, ``[T]``.
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
    """Jaccard index of two multisets; 1 where both are empty."""
    counts, others = Counter(list(left)), Counter(list(right))  # of a mapping, its keys and not its values
    union = (counts | others).total()
    return (counts & others).total() / union if union else 1.0
