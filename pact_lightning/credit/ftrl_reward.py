"""FTRL's reward of a message: what its calls newly solve, or what its text is worth (METHOD section 8)."""

from collections.abc import Sequence

from pact_lightning.credit.sub_answers import first_solved, plain

STRAY_TAGS = ("<tool_call>", "</tool_call>", "<tool_parsed_response>")
"""Marks of a call in a text that holds none that could be read [C]; the last one is spelled as in FTRL's code."""


def ftrl_rewards(
    turn_calls: Sequence[Sequence[tuple[str, str | None]]],
    texts: Sequence[str],
    sub_answers: Sequence[tuple[str, str]],
    answer: str | None,
    *,
    malformed: Sequence[int] | None = None,
) -> list[float]:
    """Reward of every turn of one rollout.

    A turn of ``p`` calls, of which ``t`` solve a sub-question that was open before, earns ``2t / (p + 1)`` [C]. A turn
    without a call earns -0.5 if it is empty, -0.3 if it holds stray call marks, ``1 / (1 + u)`` with ``u`` open
    sub-questions if its text holds the answer, 0.5 if nothing is open any more, else 0 [C].

    FTRL scores single messages, each with its own set of open sub-questions. Here is what we do about the rest [D]:

    - Over a rollout the open set is carried from turn to turn, and "nothing is open any more" is read off it. A task
      without expected answers never earns that 0.5.
    - A malformed call beside readable ones counts in ``p``. A turn whose calls are all malformed has stray marks.
    - A call that was never run (the rollout ended first) counts in ``p`` and solves nothing.
    - A turn that replies to one of several user turns is scored like the answer turn.
    - A reference answer that is empty once commas and white space are gone is held by no text.

    Args:
        turn_calls: Tool name and response of each turn's readable calls, in order, ``[T]``; ``None`` for the response
            of a call that was never run.
        texts: Text of each turn after the reasoning, ``[T]``; looked at in turns without a readable call.
        sub_answers: Tool and expected answer of every sub-question.
        answer: The known final answer, or ``None``.
        malformed: Number of malformed calls of each turn, ``[T]``; none by default.

    Returns:
        One reward per turn, ``[T]``, in ``[-0.5, 2)``.

    Raises:
        ValueError: The sequences differ in length, or a number of malformed calls is negative.

    >>> ftrl_rewards([[("age", "800"), ("age", "none")], []], ["", "It is 800."], [("age", "800")], "800")
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
            solved = _solve(calls, still_open)
            rewards.append(2.0 * solved / (len(calls) + bad + 1))
        else:
            finished = bool(sub_answers) and not still_open
            rewards.append(-0.3 if bad else _text_reward(text, answer, len(still_open), finished))
    return rewards


def _solve(calls: Sequence[tuple[str, str | None]], still_open: list[tuple[str, str]]) -> int:
    """How many open sub-questions the calls solve; takes these out of ``still_open``."""
    solved = 0
    for tool, response in calls:
        index = None if response is None else first_solved(tool, response, still_open)
        if index is not None:
            del still_open[index]
            solved += 1
    return solved


def _text_reward(text: str, answer: str | None, unsolved: int, finished: bool) -> float:
    if not text.strip():
        return -0.5
    if any(tag in text for tag in STRAY_TAGS):
        return -0.3
    wanted = "" if answer is None else plain(answer).strip()
    if wanted and wanted in plain(text):
        return 1.0 / (1 + unsolved)
    return 0.5 if finished else 0.0
