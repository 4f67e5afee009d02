"""Comparison of answers: equality after normalisation, and FTRL's rule for answers in tool responses.

:func:`answers_match` compares a final answer with a reference. :func:`open_answers` compares tool responses with the
expected answers of a task's sub-questions, as FTRL does.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from decimal import Decimal

from pact_lightning.types.task import SubAnswer

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?")
_AROUND = "\"'()[]{}<>,;:!?$€£%*`"
_REMOVED = re.compile(r"[.'’`]")
_SEPARATING = re.compile(r"[^\w\s]|_")


def answers_match(prediction: str, reference: str) -> bool:
    """Tell whether two answers are equal after normalisation; an empty one matches nothing [D].

    >>> answers_match("865.550", "865.55"), answers_match("Copenhagen, Denmark", "Copenhagen")
    (True, False)
    """
    wanted = normalise_answer(reference)
    return bool(wanted) and normalise_answer(prediction) == wanted


def normalise_answer(text: str) -> str:
    """Remove differences of case, punctuation, articles and white space; write numbers as their values [D].

    >>> normalise_answer("The  U.S. (1,500,000.0 ha)"), normalise_answer("us 1500000 HA!")
    ('us 1500000 ha', 'us 1500000 ha')
    >>> normalise_answer("A"), normalise_answer("a cat")
    ('a', 'cat')
    >>> normalise_answer("-0.50"), normalise_answer("5-6"), normalise_answer("56.")
    ('-0.5', '5 6', '56')
    """
    words: list[str] = []
    for word in unicodedata.normalize("NFKC", text).casefold().split():
        number = _number(word)
        # Only a word that is no number is taken apart: the dot of 3.5 is not punctuation.
        parts = [number] if number else _SEPARATING.sub(" ", _REMOVED.sub("", word)).split()
        words.extend(_number(part) or part for part in parts)
    # Some answers of FTRL are the letter a: an answer of articles alone keeps them.
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def _number(word: str) -> str:
    """Return a number's value in plain digits; an empty string for any other word."""
    bare = word.strip(_AROUND).rstrip(".")
    if not any(character.isdecimal() for character in bare) or not _NUMBER.fullmatch(bare):
        return ""
    value = Decimal(bare.replace(",", ""))
    digits = f"{value:f}"
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return digits if value else "0"


def answer_in_response(answer: str, response: str) -> bool:
    """Tell whether every ``", "``-separated piece of ``answer`` is in ``response``, case and commas aside [C].

    >>> answer_in_response("Brazil, China", '{"parties": ["China", "Brazil"]}')
    True
    >>> answer_in_response("1,500,000", "1500000 hectares"), answer_in_response("12", "1.2")
    (True, False)
    """
    text = plain(response)
    return all(plain(piece) in text for piece in answer.split(", "))


def plain(text: str) -> str:
    """Return the text in lower case and without commas [C]."""
    return text.lower().replace(",", "")


def open_answers(calls: Iterable[tuple[str, str]], sub_answers: Sequence[SubAnswer]) -> list[SubAnswer]:
    """Return the expected answers that the calls leave unsolved [C].

    Calls are taken in order. Each solves at most one open answer: the first one of its own tool that its response
    holds.

    Args:
        calls: Tool name and response of each call.
        sub_answers: The expected answers.
    """
    still_open = list(sub_answers)
    for tool, response in calls:
        for index, (own_tool, answer) in enumerate(still_open):
            if own_tool == tool and answer_in_response(answer, response):
                del still_open[index]
                break
    return still_open


def count_solved(calls: Iterable[tuple[str, str]], sub_answers: Sequence[SubAnswer]) -> int:
    """Count the expected answers that the calls solve; see :func:`open_answers`."""
    return len(sub_answers) - len(open_answers(calls, sub_answers))


def solve_scores(expected: int, calls: int, solved: int) -> tuple[float, float, float]:
    """Compute ``(Solve-P, Solve-R, Solve-F1) = (q/p, q/n, 2q/(p+n))``; Solve-P is 1 without a call [C].

    Args:
        expected: ``n``, at least 1.
        calls: ``p``.
        solved: ``q``.

    Raises:
        ValueError: ``expected`` is below 1.

    >>> solve_scores(2, 3, 1)
    (0.3333333333333333, 0.5, 0.4)
    """
    if expected < 1:
        raise ValueError("a task without expected answers has no solve scores; leave it out")
    precision = solved / calls if calls else 1.0
    return precision, solved / expected, 2 * solved / (calls + expected)
