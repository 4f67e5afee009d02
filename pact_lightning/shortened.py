"""Values in sentences: as Python writes them, and not too long."""


def shortened(value: object, characters: int = 80) -> str:
    """A value as ``repr`` gives it, of at most about so many characters; a string keeps both of its quotes.

    Args:
        value: Any value.
        characters: How many at most, before quotes and escapes.

    >>> shortened("ab" * 9, 8), shortened([1, 2, 3, 4, 5], 8), shortened("ab")
    ("'ababa...'", '[1, 2...', "'ab'")
    """
    if isinstance(value, str):
        return repr(value if len(value) <= characters else f"{value[: characters - 3]}...")
    text = repr(value)
    return text if len(text) <= characters else f"{text[: characters - 3].rstrip()}..."
