"""Turn rewards of the paper: matched calls, and F1 of the final answer (METHOD section 3, items 2 and 3)."""

import re
import string
from collections.abc import Sequence

from pact_lightning.credit.matching import MatchMethod, check_penalty, match_calls
from pact_lightning.types.tool_call import ToolCall

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# The innermost complete pair: neither tag may stand within it.
_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)


def answer_f1(prediction: str, reference: str) -> float:
    """Compute the F1 of the *sets* of tokens of an answer and its reference, in ``[0, 1]`` [C].

    Tokens are lower-case, without ASCII punctuation, split on white space. Without a shared token the F1 is 0.

    >>> answer_f1("It is Paris, Paris!", "paris")
    0.5
    """
    predicted, wanted = _tokens(prediction), _tokens(reference)
    common = len(predicted & wanted)
    return 2.0 * common / (len(predicted) + len(wanted)) if common else 0.0


def extract_answer(text: str) -> str:
    """Return the content of the last complete ``<answer>...</answer>`` pair, else the whole text; stripped [D].

    >>> extract_answer("So: <answer> 42 </answer>."), extract_answer(" 42 ")
    ('42', '42')
    """
    contents = _ANSWER.findall(text)
    return str(contents[-1] if contents else text).strip()


def turn_rewards(
    turn_calls: Sequence[Sequence[ToolCall]],
    reference_calls: Sequence[ToolCall],
    final_answer: str | None,
    reference_answer: str | None,
    *,
    malformed: Sequence[int] | None = None,
    method: MatchMethod = "hungarian",
    unmatched_penalty: float = 0.0,
) -> list[float]:
    """Compute the reward ``r_{k,t}`` of every turn of one rollout [P].

    The calls of all turns are matched with the reference at once. A tool turn gets the mean over its calls, 0 without
    a call. Malformed calls, and calls that a limit cut off before they ran, match nothing [D]: each scores
    ``-unmatched_penalty`` and counts in its turn's mean.
    The answer turn, the last one, gets :func:`answer_f1` of :func:`extract_answer` of its text.

    Args:
        turn_calls: The well-formed calls of each turn that were run, ``[T]``; empty for the answer turn.
        reference_calls: Calls that solve the task; empty where they are not known.
        final_answer: Text of the answer turn after the reasoning. ``None`` for a rollout without an answer, whose last
            turn is a tool turn like the others.
        reference_answer: The known answer; with ``None`` the answer turn gets 0 [D].
        malformed: Number of each turn's other calls, malformed or never run, ``[T]``; none by default.
        method: See :func:`pact_lightning.credit.matching.match_calls`.
        unmatched_penalty: ``lambda_pen``, see there.

    Returns:
        One reward per turn, ``[T]``.

    Raises:
        ValueError: ``malformed`` does not fit the turns or is negative, the penalty is negative, or there is a final
            answer but no turn, or one whose last turn calls tools.
    """
    check_penalty(unmatched_penalty)
    broken = _broken_calls(malformed, len(turn_calls))
    if final_answer is not None and (not turn_calls or turn_calls[-1] or broken[-1]):
        raise ValueError("a final answer needs a last turn without tool calls; pass final_answer=None otherwise")
    calls = [call for turn in turn_calls for call in turn]
    scores = iter(match_calls(calls, reference_calls, method=method, unmatched_penalty=unmatched_penalty))
    rewards = []
    for turn, bad in zip(turn_calls, broken, strict=True):
        total = sum(next(scores) for _ in turn) - bad * unmatched_penalty
        rewards.append(total / max(len(turn) + bad, 1))
    if final_answer is not None:
        rewards[-1] = _answer_reward(final_answer, reference_answer)
    return rewards


def outcome_reward(turns: int, final_answer: str | None, reference_answer: str | None) -> list[float]:
    """Reward a rollout by its answer alone, as GRPO does: every turn but the last gets 0.

    Args:
        turns: Number of turns ``T``.
        final_answer: Text of the answer turn after the reasoning, or ``None`` without an answer.
        reference_answer: The known answer; with ``None`` the reward is 0.

    Returns:
        One reward per turn, ``[T]``; the last is the answer's F1.

    Raises:
        ValueError: ``turns`` is negative, or 0 although there is a final answer.
    """
    if turns < (0 if final_answer is None else 1):
        raise ValueError(
            f"a rollout {'with' if final_answer is not None else 'without'} an answer has no {turns} turns"
        )
    rewards = [0.0] * turns
    if final_answer is not None:
        rewards[-1] = _answer_reward(final_answer, reference_answer)
    return rewards


def _answer_reward(final_answer: str, reference_answer: str | None) -> float:
    return 0.0 if reference_answer is None else answer_f1(extract_answer(final_answer), reference_answer)


def _broken_calls(malformed: Sequence[int] | None, turns: int) -> Sequence[int]:
    if malformed is None:
        return [0] * turns
    if len(malformed) != turns or any(count < 0 for count in malformed):
        raise ValueError(f"malformed must hold one count >= 0 per turn, {turns} in all; got {list(malformed)}")
    return malformed


def _tokens(text: str) -> set[str]:
    return set(text.lower().translate(_NO_PUNCTUATION).split())
