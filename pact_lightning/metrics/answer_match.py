"""Whether two answers are the same."""

import re
import unicodedata
from decimal import Decimal

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?")
_AROUND = "\"'()[]{}<>,;:!?$€£%*`"
_REMOVED = re.compile(r"[.'’`]")
_SEPARATING = re.compile(r"[^\w\s]|_")


def normalise_answer(text: str) -> str:
    """Case, punctuation, articles and white space evened out; a number is given as its value [D].

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


def answers_match(prediction: str, reference: str) -> bool:
    """Whether two answers are the same once normalised; an answer that leaves nothing matches none [D].

    >>> answers_match("865.550", "865.55"), answers_match("Copenhagen, Denmark", "Copenhagen")
    (True, False)
    """
    wanted = normalise_answer(reference)
    return bool(wanted) and normalise_answer(prediction) == wanted


def _number(word: str) -> str:
    """A number's value in plain digits; empty when the word is none."""
    bare = word.strip(_AROUND).rstrip(".")
    if not any(character.isdecimal() for character in bare) or not _NUMBER.fullmatch(bare):
        return ""
    value = Decimal(bare.replace(",", ""))
    digits = f"{value:f}"
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return digits if value else "0"
