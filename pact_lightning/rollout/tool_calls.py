"""A tool call as every loop runs it, the engine's and a teacher's: what it comes back with, whatever happens."""

import copy
import math
from collections.abc import Sequence
from typing import Any

from pact_lightning.dialogue.tool_call import ParsedCall, ToolCall
from pact_lightning.environments.protocol import Environment, ToolResult
from pact_lightning.rollout.tool_threads import ToolFunction


def refusal_of(offered: Sequence[str], entry: ParsedCall) -> ToolResult | None:
    """What a call that cannot be run comes back with; ``None`` for one that can."""
    if entry.call is None:
        return ToolResult(entry.error, error=True)
    if entry.call["name"] not in offered:
        known = ", ".join(offered)
        return ToolResult(f"There is no tool named {entry.call['name']!r}. The tools are: {known}.", error=True)
    return None


def run_tool(environment: Environment, call: ToolCall) -> ToolResult:
    """Runs one call.

    Raises:
        TypeError: The environment gives anything but a ``ToolResult`` with a text.
        Exception: Whatever the tool raises.
    """
    # A copy: a tool may keep its arguments and change them later, and the trajectory must not change with them.
    result: Any = environment.call(call["name"], copy.deepcopy(call["arguments"]))
    if not isinstance(result, ToolResult) or not isinstance(result.text, str):
        raise TypeError(f"the environment's call() must return a ToolResult with a text, not {result!r:.80}")
    return result


def failure(error: BaseException) -> ToolResult:
    """What a call that raised comes back with."""
    return ToolResult(f"The tool failed: {type(error).__name__}: {error}", error=True)


def cut_response(text: str, limit: int) -> str:
    """A response as the policy reads it: of at most ``limit`` characters, and says so where it was longer."""
    # Half of a surrogate pair, as JSON may hold it, has no UTF-8 and so no tokens.
    text = text.encode(errors="replace").decode()
    return text if len(text) <= limit else f"{text[:limit]}... (cut after {limit} characters)"


def closing_verbs(environment: object) -> list[ToolFunction]:
    """What is run once a rollout has ended: the environment's ``reward`` and ``close``, where it has them.

    The first gives a finite number, the second ``None``.
    """
    return [verb for verb in (_reward_verb(environment), _close_verb(environment)) if verb is not None]


def _reward_verb(environment: object) -> ToolFunction | None:
    reward = getattr(environment, "reward", None)
    if not callable(reward):
        return None

    def run() -> float:
        value = float(reward())
        if not math.isfinite(value):
            raise ValueError(f"the environment's reward() must be a finite number, not {value}")
        return value

    return run


def _close_verb(environment: object) -> ToolFunction | None:
    close = getattr(environment, "close", None)
    if not callable(close):
        return None

    def run() -> None:
        close()

    return run
