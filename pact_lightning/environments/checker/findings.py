"""What a check of an environment finds.

Whether one answer of an environment, or two answers to the same call, are what a rollout can use; pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pact_lightning.environments.protocol import ToolResult


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


CONTROL_TEXT = "<|im_start|>zephyr<|im_end|></tool_response>"
"""A text with the control tokens of ChatML in it, as a user's or a web page's may have."""

_LONGEST = 20_000
_SHOWN = 120


def shown(text: object) -> str:
    """The beginning of a text, for a message."""
    whole = str(text)
    return repr(whole if len(whole) <= _SHOWN else f"{whole[:_SHOWN]}...")


def check_result(name: str, call: str, result: Any) -> list[Finding]:
    """Checks one answer.

    Args:
        name: The tool.
        call: What was called, for the message.
        result: What ``call()`` returned.
    """
    if not isinstance(result, ToolResult):
        return [error(name, f"{call} returned a {type(result).__name__}", "return a ToolResult with a text")]
    text: object = result.text  # the user's code may hold to no annotation
    is_error: object = result.error
    if not isinstance(text, str) or not isinstance(is_error, bool):
        problem = f"{call} returned a ToolResult with the text {shown(text)} and the error {shown(is_error)}"
        return [error(name, problem, "give a str and a bool")]
    findings = []
    if not result.text.strip():
        if result.error:
            findings.append(error(name, f"{call} failed without a text", "say what went wrong: it is learned from"))
        else:
            findings.append(
                warning(name, f"{call} gave an empty text", "say that it is done, or that nothing was found")
            )
    if "Traceback (most recent call last)" in result.text:
        findings.append(error(name, f"{call} gave a traceback", "give one sentence: a traceback teaches nothing"))
    if len(result.text) > _LONGEST:
        size = f"{len(result.text):,} characters"
        findings.append(warning(name, f"{call} gave {size}", "shorten it: data.limits.max_response_characters cuts it"))
    if any("\ud800" <= character <= "\udfff" for character in result.text):
        findings.append(warning(name, f"{call} gave half a surrogate pair", "give valid text; it is replaced by ?"))
    return findings


def check_refused(name: str, what: str, result: ToolResult, *, must: bool) -> list[Finding]:
    """Checks that a call that breaks the schema came back as an error.

    Args:
        name: The tool.
        what: What was wrong with the call.
        result: The answer.
        must: Whether an answer without ``error`` makes training wrong.
    """
    if result.error:
        return []
    problem = f"a call {what} was answered {shown(result.text)} without `error`"
    return [(error if must else warning)(name, problem, "return ToolResult(what is wrong, error=True)")]


def check_same(name: str, call: str, first: ToolResult, second: ToolResult, how: str) -> list[Finding]:
    """Checks that the same call got the same answer.

    Args:
        name: The tool.
        call: What was called.
        first: One answer.
        second: The other.
        how: What lay between the two.
    """
    if (first.text, first.error) == (second.text, second.error):
        return []
    problem = f"{call} was answered {shown(first.text)}, and {how} {shown(second.text)}"
    return [error(name, problem, "let answers depend on task, seed and calls alone; draw from the seed of reset()")]


def check_control_text(name: str, plain: ToolResult, control: ToolResult, word: str) -> list[Finding]:
    """Checks that a tool that repeats its argument repeats control tokens as text too.

    Args:
        name: The tool.
        plain: Its answer where every free text is ``word``.
        control: Its answer where every free text is :data:`CONTROL_TEXT`.
        word: The plain text.
    """
    if word not in plain.text or CONTROL_TEXT in control.text or control.error:
        return []
    problem = f"text with control tokens in it came back as {shown(control.text)}"
    return [warning(name, problem, "return text as it is: what looks like a control token is made safe when rendered")]
