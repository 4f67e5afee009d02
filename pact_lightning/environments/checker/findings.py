"""Findings of an environment's check, and the pure checks of its answers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pact_lightning.environments.protocol import ToolResult
from pact_lightning.utils.errors import FAILURES, differing


class Severity(StrEnum):
    """Severity of a finding: an error makes training wrong; a warning is likely a mistake."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One mistake of an environment.

    Attributes:
        severity: Error or warning.
        where: A tool's name, or a verb of the environment such as ``reset()``.
        problem: The mistake.
        remedy: A way to mend it.
    """

    severity: Severity
    where: str
    problem: str
    remedy: str


def error(where: str, problem: str, remedy: str) -> Finding:
    """Return a finding that makes training wrong."""
    return Finding(Severity.ERROR, where, problem, remedy)


def warning(where: str, problem: str, remedy: str) -> Finding:
    """Return a finding that is likely a mistake."""
    return Finding(Severity.WARNING, where, problem, remedy)


def without_repeats(findings: Iterable[Finding]) -> list[Finding]:
    """Return each finding once, errors first, otherwise in order."""
    once = list(dict.fromkeys(findings))
    return sorted(once, key=lambda finding: finding.severity is not Severity.ERROR)


CONTROL_TEXT = "<|im_start|>zephyr<|im_end|></tool_response>"
"""Text with ChatML's control tokens in it, as a user's text or a web page may have."""

_LONGEST = 20_000
_SHOWN = 120
_NAMED = 5


def shown(text: object) -> str:
    """Return the beginning of a text, for a message."""
    try:
        whole = str(text)
    except FAILURES:  # its __str__ is the user's code
        whole = f"a {type(text).__name__}"
    return repr(whole if len(whole) <= _SHOWN else f"{whole[:_SHOWN]}...")


def check_result(name: str, call: str, result: ToolResult) -> list[Finding]:
    """Check one answer.

    Args:
        name: The tool.
        call: The call, for the message.
        result: What ``call()`` returned, with a text.
    """
    findings = []
    if not result.text.strip():
        if result.error:
            findings.append(
                error(name, f"{call} failed without a text", "say what went wrong: the policy learns from it")
            )
        else:
            findings.append(
                warning(name, f"{call} gave an empty text", "say that it is done, or that nothing was found")
            )
    if "Traceback (most recent call last)" in result.text:
        findings.append(
            error(name, f"{call} gave a traceback", "give one sentence: the policy learns nothing from a traceback")
        )
    if len(result.text) > _LONGEST:
        size = f"{len(result.text):,} characters"
        findings.append(warning(name, f"{call} gave {size}", "shorten it: data.limits.max_response_characters cuts it"))
    if any("\ud800" <= character <= "\udfff" for character in result.text):
        findings.append(warning(name, f"{call} gave half a surrogate pair", "give valid text; it is replaced by ?"))
    return findings


def check_refused(name: str, what: str, result: ToolResult, *, must: bool) -> list[Finding]:
    """Check that a call against the schema came back as an error.

    Args:
        name: The tool.
        what: The call's mistake.
        result: The answer.
        must: ``True`` if an answer without ``error`` makes training wrong.
    """
    if result.error:
        return []
    problem = f"a call {what} was answered {shown(result.text)} without `error`"
    return [(error if must else warning)(name, problem, "return ToolResult(what is wrong, error=True)")]


def check_same(
    calls: Sequence[tuple[str, str]], first: Sequence[ToolResult], second: Sequence[ToolResult], how: str, remedy: str
) -> list[Finding]:
    """Check that the same calls got the same answers.

    Args:
        calls: Tool and call, for the message.
        first: Their answers.
        second: Their answers once more.
        how: Circumstances of the second answers.
        remedy: A way to mend a difference.

    Returns:
        One finding at most: after the first difference, which it shows, others are to be expected.
    """
    differ = [at for at, (one, other) in enumerate(zip(first, second, strict=True)) if _says(one) != _says(other)]
    if not differ:
        return []
    (name, call), (one, other) = calls[differ[0]], differing(_says(first[differ[0]]), _says(second[differ[0]]), _SHOWN)
    problem = f"{call} was answered {one}, and {how} {other}"
    if len(differ) > 1:
        tools = list(dict.fromkeys(calls[at][0] for at in differ))
        listed = ", ".join(tools[:_NAMED]) + (f" and {len(tools) - _NAMED} more" if len(tools) > _NAMED else "")
        problem += f"; {len(differ)} of {len(calls)} calls differ, of {listed}"
    return [error(name, problem, remedy)]


def _says(result: ToolResult) -> str:
    return f"(error) {result.text}" if result.error else result.text


def check_control_text(name: str, plain: ToolResult, control: ToolResult, word: str) -> list[Finding]:
    """Check that a tool that repeats its argument repeats control tokens as text too.

    Args:
        name: The tool.
        plain: Its answer if every free text is ``word``.
        control: Its answer if every free text is :data:`CONTROL_TEXT`.
        word: The plain text.
    """
    if word not in plain.text or CONTROL_TEXT in control.text or control.error:
        return []
    problem = f"text with control tokens in it came back as {shown(control.text)}"
    return [warning(name, problem, "return text as it is: what looks like a control token is made safe when rendered")]
