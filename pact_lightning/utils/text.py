"""Words for numbers of things."""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, which takes an ``s`` in the plural.

    >>> counted(1, "task"), counted(0, "task"), counted(1200, "task")
    ('1 task', '0 tasks', '1,200 tasks')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
