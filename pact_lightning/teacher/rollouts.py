"""Rollouts that a run has written to ``trajectories/``, read and shown in colours, with each turn's reward."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pact_lightning.rollout.openai_format import TOKEN_FIGURES
from pact_lightning.teacher.importers.conversation import RecordError
from pact_lightning.teacher.importers.fields import needed, read_id, wanted
from pact_lightning.teacher.importers.reading import Problem, Record, read_records, record_files
from pact_lightning.teacher.view import STYLES, legend, shown

_MARKS = ("task_id", "sample", "stop_reason", "messages")


@dataclass(frozen=True, slots=True)
class RolloutRecord:
    """Rollout as a run has written it.

    Attributes:
        id: The task's id.
        sample: Its number among the rollouts of the task.
        phase: The phase; ``None`` outside training.
        stop_reason: What ended it.
        tokens: Number of tokens behind the prompt; ``None`` if not recorded.
        prompt: The messages before the first turn.
        turns: The messages of each turn, that of the policy first.
        rewards: Reward of each turn; empty if it has none.
        advantages: Advantage of each turn; empty if it has none.
        line: Line of its file; 0 if unknown.
        kind: The task's kind; may be empty.
        scores: Its scores by metric, outside training.
        solved: Whether it solved its task; ``None`` where that is not recorded.
        temperature: Sampling temperature, outside training.
    """

    id: str
    sample: int
    phase: int | None
    stop_reason: str
    tokens: int | None
    prompt: list[dict[str, Any]] = field(default_factory=list)
    turns: list[list[dict[str, Any]]] = field(default_factory=list)
    rewards: tuple[float, ...] = ()
    advantages: tuple[float, ...] = ()
    line: int = 0
    kind: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    solved: bool | None = None
    temperature: float | None = None


def is_rollout_file(path: Path) -> bool:
    """Recognise a file of rollouts, or a folder of them, by its first record."""
    if not path.exists() or path.suffix in (".yaml", ".yml"):
        return False
    records = (record for file in record_files(path) for record in read_records(file))
    first = next((record for record in records if isinstance(record, Record)), None)
    return first is not None and isinstance(first.value, dict) and all(mark in first.value for mark in _MARKS)


def read_rollouts(path: Path) -> Iterator[RolloutRecord | Problem]:
    """Read the rollouts of a file or folder.

    Args:
        path: A file that a run has written to ``trajectories/``, or that folder.

    Yields:
        Each rollout, whatever its policy wrote, or the problem of its record.
    """
    for file in record_files(path):
        if path.is_dir() and file.name.startswith(TOKEN_FIGURES):
            continue
        for record in read_records(file):
            if isinstance(record, Problem):
                yield record
                continue
            try:
                yield _rollout(record.value, record.place.number)
            except RecordError as error:
                yield Problem(record.place, error.reason, error.problem, error.field)


def _rollout(value: Any, line: int) -> RolloutRecord:
    record = needed(value, *_MARKS)
    messages = wanted(record["messages"], list, "messages")
    for index, message in enumerate(messages):
        wanted(wanted(message, dict, f"messages[{index}]").get("role"), str, f"messages[{index}].role")
    scores = wanted(record.get("scores") or {}, dict, "scores")
    temperature = record.get("temperature")
    found = RolloutRecord(
        id=read_id(record, "task_id"),
        sample=wanted(record["sample"], int, "sample"),
        phase=None if record.get("phase") is None else wanted(record["phase"], int, "phase"),
        stop_reason=wanted(record["stop_reason"], str, "stop_reason"),
        tokens=None if record.get("tokens") is None else wanted(record["tokens"], int, "tokens"),
        rewards=_numbers(record, "turn_rewards"),
        advantages=_numbers(record, "turn_advantages"),
        line=line,
        kind=wanted(record.get("kind") or "", str, "kind"),
        scores={name: _number_of(value, f"scores.{name}") for name, value in scores.items()},
        solved=None if record.get("solved") is None else wanted(record["solved"], bool, "solved"),
        temperature=None if temperature is None else _number_of(temperature, "temperature"),
    )
    for message in messages:
        if message["role"] == "assistant":
            found.turns.append([message])
        else:
            (found.turns[-1] if found.turns else found.prompt).append(message)
    return found


def _numbers(record: Mapping[str, Any], name: str) -> tuple[float, ...]:
    values = wanted(record.get(name) or [], list, name)
    return tuple(_number_of(value, f"{name}[{index}]") for index, value in enumerate(values))


def _number_of(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError("wrong type", field, f"must be a number, got {type(value).__name__}")
    return float(value)


def samples_table(rollouts: Sequence[RolloutRecord]) -> Table:
    """List the rollouts of a task: what ended each, and its reward."""
    table = Table(title="rollouts of this task", title_justify="left", title_style="dim")
    for name in ("sample", "phase", "stop reason", "turns", "tokens", "malformed calls", "reward"):
        table.add_column(name, justify="left" if name == "stop reason" else "right")
    for rollout in rollouts:
        malformed = sum(len(_listed(turn[0], "malformed_calls")) for turn in rollout.turns)
        table.add_row(
            str(rollout.sample),
            _or_dash(rollout.phase),
            Text(shown(rollout.stop_reason, full=False)),
            str(len(rollout.turns)),
            _or_dash(rollout.tokens),
            str(malformed),
            f"{sum(rollout.rewards):+.3f}" if rollout.rewards else "-",
        )
    return table


def rollout_view(rollout: RolloutRecord, *, full: bool = False) -> RenderableType:
    """Show a rollout, turn by turn.

    Args:
        rollout: The rollout.
        full: Show long texts whole.
    """
    return Group(*_parts(rollout, full))


def _parts(rollout: RolloutRecord, full: bool) -> Iterator[RenderableType]:
    phase = "" if rollout.phase is None else f", phase {rollout.phase}"
    tokens = "" if rollout.tokens is None else f", {rollout.tokens} tokens"
    reward = f", reward {sum(rollout.rewards):+.3f}" if rollout.rewards else ""
    stop = shown(rollout.stop_reason, full)
    yield Text(f"rollout of {rollout.id}, sample {rollout.sample}{phase}: {stop}{tokens}{reward}", style="bold")
    yield legend()
    for message in rollout.prompt:
        yield Text(f"{shown(message['role'], full)}: {_content(message, full)}", STYLES["prompt"])
    for index, messages in enumerate(rollout.turns):
        title = (
            f"turn {index}{_number('reward', rollout.rewards, index)}{_number('advantage', rollout.advantages, index)}"
        )
        ends = [message for message in messages if message["role"] == "user"]
        turn = [message for message in messages if message["role"] != "user"]
        yield Panel(Group(*_turn(turn, full)), title=title, title_align="left")
        for message in ends:
            tools = [tool["function"]["name"] for tool in _listed(message, "tools") if _is_tool(tool)]
            added = "".join(f" [+ {shown(str(name), full)}]" for name in tools)
            yield Text(f"user: {_content(message, full)}{added}", STYLES["prompt"])


def _turn(messages: Sequence[Mapping[str, Any]], full: bool) -> Iterator[RenderableType]:
    said, responses = messages[0], messages[1:]
    calls, malformed = _listed(said, "tool_calls"), _listed(said, "malformed_calls")
    for name, style, text in (
        ("reasoning", "reasoning", said.get("reasoning_content")),
        ("text" if calls or malformed else "answer", "answer", said.get("content")),
        ("as written", "never", said.get("text") if malformed else None),
    ):
        if isinstance(text, str) and text.strip():
            yield Text.assemble((f"{name}: ", "dim"), (shown(text, full), STYLES[style]))
    names: dict[str, str] = {}
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            names[str(call.get("id"))] = str(function.get("name"))
            text = f"{function.get('name')} {function.get('arguments')}"
            yield Text.assemble(("call: ", "dim"), (shown(text, full), STYLES["tool_call"]))
    for error in malformed:
        yield Text.assemble(("malformed call: ", "dim"), (shown(str(error), full), STYLES["never"]))
    for response in responses:
        to = names.get(str(response.get("tool_call_id")), "")
        failed = ", which failed" if response.get("error") is True else ""
        label = f"response{f' of {shown(to, full)}' if to else ''}{failed}: "
        yield Text.assemble((label, "dim"), (_content(response, full), STYLES["observation"]))


def _number(name: str, values: Sequence[float], index: int) -> str:
    return f", {name} {values[index]:+.3f}" if index < len(values) else ""


def _content(message: Mapping[str, Any], full: bool) -> str:
    content = message.get("content")
    return shown(content if isinstance(content, str) else repr(content), full)


def _listed(message: Mapping[str, Any], name: str) -> list[Any]:
    value = message.get(name)
    return value if isinstance(value, list) else []


def _is_tool(tool: Any) -> bool:
    return isinstance(tool, dict) and isinstance(tool.get("function"), dict) and "name" in tool["function"]


def _or_dash(number: int | None) -> str:
    return "-" if number is None else str(number)
