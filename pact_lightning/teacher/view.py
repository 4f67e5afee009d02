"""Traces shown in colours, turn by turn, with the part of the reasoning that each level supervises."""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pact_lightning.teacher.stored import StoredTrace
from pact_lightning.traces.hard_turns import Flagged
from pact_lightning.traces.levels import MAX_LEVEL, NEVER, min_level_at, prefix_ends
from pact_lightning.types.trace import ExpertTurn
from pact_lightning.utils.text import visible

STYLES = {
    "prompt": "dim",
    "reasoning": "green",
    "never": "red",
    "tool_call": "magenta",
    "observation": "cyan",
    "answer": "yellow",
}
"""Colours of components; ``never`` is reasoning that no level supervises."""
SHOWN_CHARACTERS = 400
"""Length above which a text is cut in the middle."""
BESIDE_WIDTH = 140
"""Characters of a terminal in which two views fit beside each other."""


def trace_view(trace: StoredTrace, flags: Sequence[Flagged] = (), *, full: bool = False) -> RenderableType:
    """Show a trace, turn by turn.

    Args:
        trace: The trace.
        flags: Its quality flags.
        full: Show long texts whole.
    """
    return Group(*_parts(trace, flags, full))


def level_table(turn: ExpertTurn, *, full: bool = False) -> Table:
    """Show the five prefixes of a turn's reasoning with their lengths; equal ones share a row.

    Args:
        turn: The turn.
        full: Show long prefixes whole.
    """
    table = Table(title="supervised reasoning, by level", title_justify="left", title_style="dim")
    table.add_column("level")
    table.add_column("characters", justify="right")
    table.add_column("prefix", overflow="fold")
    ends = prefix_ends(turn.chunks, turn.calls)
    for end, same in groupby(range(len(ends)), key=ends.__getitem__):
        levels = list(same)
        name = f"L{levels[0]}" if len(levels) == 1 else f"L{levels[0]}-L{levels[-1]}"
        prefix = shown(turn.reasoning[:end].rstrip(), full) if end else "(none)"
        table.add_row(name, f"{end} of {len(turn.reasoning)}", Text(prefix, STYLES["reasoning"] if end else "dim"))
    return table


def _parts(trace: StoredTrace, flags: Sequence[Flagged], full: bool) -> Iterator[RenderableType]:
    yield Text(f"trace {trace.prompt.id}", style="bold")
    yield legend()
    for message in trace.prompt.messages:
        yield Text(f"{message['role']}: {shown(message['content'], full)}", STYLES["prompt"])
    coming = iter(trace.prompt.follow_ups)
    for index, turn in enumerate(trace.turns):
        yield Panel(_turn(turn, full), title=f"turn {index}: {turn.pattern.value}", title_align="left")
        if turn.reply is not None and (user := next(coming, None)) is not None:
            tools = "".join(f" [+ {tool['function']['name']}]" for tool in user.tools)
            yield Text(f"user: {shown(user.content, full)}{tools}", STYLES["prompt"])
    for flagged in flags:
        where = "" if flagged.turn is None else f" in turn {flagged.turn}"
        yield Text(
            f"flag {flagged.flag.value}{where}{': ' if flagged.text else ''}{shown(flagged.text, full)}", "bold red"
        )


def _turn(turn: ExpertTurn, full: bool) -> RenderableType:
    parts: list[RenderableType] = []
    ends = prefix_ends(turn.chunks, turn.calls)
    at = 0
    for chunk in turn.chunks:
        at += len(chunk.text)
        level = min_level_at(at, ends) if at else NEVER
        never = level > MAX_LEVEL
        label = f"{chunk.type.value}, {'never supervised' if never else f'from L{level}'}: "
        style = STYLES["never" if never else "reasoning"]
        parts.append(Text.assemble((label, "dim"), (shown(chunk.text.strip(), full), style)))
    responses = [*turn.responses, *[None] * (len(turn.calls) - len(turn.responses))]
    for call, response in zip(turn.calls, responses, strict=True):
        arguments = shown(json.dumps(call["arguments"], ensure_ascii=False), full)
        parts.append(
            Text.assemble(("call: ", "dim"), (f"{shown(call['name'], full)} {arguments}", STYLES["tool_call"]))
        )
        said = "(not known)" if response is None else shown(response, full)
        parts.append(Text.assemble(("response: ", "dim"), (said, STYLES["observation"])))
    if not turn.calls:
        parts.append(Text.assemble(("answer: ", "dim"), (shown(turn.reply or turn.answer, full), STYLES["answer"])))
    if turn.reasoning and turn.calls:
        parts.append(level_table(turn, full=full))
    return Group(*parts)


class Beside:
    """Two views beside each other, or one below the other where the terminal is narrow.

    Args:
        views: The views.
    """

    def __init__(self, views: Sequence[RenderableType]) -> None:
        self.views = views

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the views."""
        if len(self.views) > 1 and options.max_width >= BESIDE_WIDTH:
            grid = Table.grid(expand=True, padding=(0, 1))
            for _ in self.views:
                grid.add_column(ratio=1)
            grid.add_row(*self.views)
            yield grid
        else:
            yield from self.views


def legend() -> Text:
    """Name the colours of the components."""
    names = [("reasoning", "reasoning"), ("reasoning that is never supervised", "never")]
    names += [(name, name) for name in ("tool_call", "observation", "answer", "prompt")]
    return Text.assemble(*[(f"{text}  ", STYLES[style]) for text, style in names])


def shown(text: str, full: bool) -> str:
    """Make a text fit for a terminal: escape sequences written out, and not too long."""
    plain = visible(text)
    if full or len(plain) <= SHOWN_CHARACTERS:
        return plain
    half = SHOWN_CHARACTERS // 2
    return f"{plain[:half]} [... {len(plain) - 2 * half} characters ...] {plain[-half:]}"
