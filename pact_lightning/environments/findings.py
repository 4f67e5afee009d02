"""What a check of an environment finds."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad it is: training on an environment with an error is wrong; a warning is likely a mistake."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        severity: How bad it is.
        where: A tool's name, or a verb of the environment such as ``reset()``.
        problem: What is wrong.
        remedy: How to mend it.
    """

    severity: Severity
    where: str
    problem: str
    remedy: str


def error(where: str, problem: str, remedy: str) -> Finding:
    """A finding that makes training wrong."""
    return Finding(Severity.ERROR, where, problem, remedy)


def warning(where: str, problem: str, remedy: str) -> Finding:
    """A finding that is likely a mistake."""
    return Finding(Severity.WARNING, where, problem, remedy)


def without_repeats(findings: Iterable[Finding]) -> list[Finding]:
    """Each finding once, errors first, otherwise in order."""
    once = list(dict.fromkeys(findings))
    return sorted(once, key=lambda finding: finding.severity is not Severity.ERROR)
