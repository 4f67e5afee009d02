"""One fault, injected so many times by one function."""

from collections import Counter

from faults.deadline import HangError
from faults.result import FaultResult


class DamageError(AssertionError):
    """Something did not hold."""


def repeated(section, fault, times, inject):
    """The row of a fault.

    Args:
        section: Its table.
        fault: What is injected, in a few words.
        times: How often.
        inject: Is called with 0, 1, ...; injects once, says what happened, and raises where something did not hold.
    """
    said, problems = Counter(), Counter()
    for number in range(times):
        try:
            said[inject(number)] += 1
        except HangError as error:
            problems[f"HANG: {error}"] += 1
        except Exception as error:  # noqa: BLE001  # whatever it is, it is told in the table
            problems[f"{type(error).__name__}: {error}".removeprefix("DamageError: ")] += 1
    text = " ".join("; ".join(problems or [text for text, _ in said.most_common(1)]).split())
    return FaultResult(section, fault, times, times - problems.total(), text[:200])


def expect(held, otherwise):
    """Raises where something does not hold.

    Raises:
        DamageError: ``held`` is false.
    """
    if not held:
        raise DamageError(otherwise)
