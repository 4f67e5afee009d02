"""Words for numbers of things, and texts from outside made fit for a terminal."""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, which takes an ``s`` in the plural.

    >>> counted(1, "task"), counted(0, "task"), counted(1200, "task")
    ('1 task', '0 tasks', '1,200 tasks')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def visible(text: str) -> str:
    r"""Return a text whose control characters are written out, so that a terminal shows and does not obey them.

    >>> print(visible("a" + chr(27) + "[31m" + chr(0x202E) + "b"))
    a\x1b[31m\u202eb
    """
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
