"""What ``pact-lightning tasks`` shows, as tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from pact_lightning.policy.bundled import BUNDLED
from pact_lightning.tasks.importing import ImportReport


def import_table(report: ImportReport, output: Path) -> Table:
    """What became of the records of an import."""
    table = Table(title=str(output))
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("for example", overflow="fold")
    table.add_row("read", str(report.read), "")
    for field, tally in report.dropped.items():
        table.add_row(f"left out for {field}", str(tally.count), tally.first)
    table.add_row("written", str(report.written), "")
    if report.traces or report.no_trace:
        table.add_row("traces made by replay", str(report.traces), "")
    for reason, tally in report.no_trace.items():
        table.add_row(f"without a trace: {reason}", str(tally.count), tally.first)
    return table


def length_table(figures: Mapping[str, Any]) -> Table:
    """Lengths and numbers per task; ``figures`` are those of the statistics, and the tokenizer."""
    table = Table(title=f"{figures['tasks']} tasks, lengths in tokens of {figures['tokenizer']}")
    if figures["tokenizer"] == BUNDLED:
        table.caption = (
            "These are lengths under the bundled policy's tokenizer and not under a real model's; "
            "name yours by --tokenizer FOLDER_OR_HUB_ID."
        )
        table.caption_justify = "left"
    for name in ("", "min", "median", "p90", "max"):
        table.add_column(name, justify="right" if name else "left")
    traces, follow_ups = figures["traces"], figures["follow_ups"]
    spreads = {
        "prompt, tokens": figures["prompt_tokens"],
        "tools per task": figures["tools"],
        "follow-ups": follow_ups["turns"],
        "trace, turns": traces["turns"],
        "trace, calls": traces["calls"],
        "trace, tokens": traces["tokens"],
    }
    for name, spread in spreads.items():
        if spread:
            table.add_row(name, *(f"{spread[column]:,.0f}" for column in ("min", "median", "p90", "max")))
    return table


def count_table(figures: Mapping[str, Any]) -> Table:
    """How many tasks have what."""
    counts = Table(title="Tasks")
    counts.add_column("")
    counts.add_column("", justify="right")
    left_out, traces = figures["left_out"], figures["traces"]
    rows = {f"kind {kind or '(none)'}": count for kind, count in figures["kinds"].items()}
    rows |= {f"with reference {name}": count for name, count in figures["references"].items()}
    rows |= {"with follow-ups": figures["follow_ups"]["tasks"], "with a trace": traces["tasks"]}
    rows |= {"with reasoning in the trace": traces["with_reasoning"], "with a final answer turn": traces["with_final"]}
    rows[f"left out by max_prompt_tokens {left_out['max_prompt_tokens']}"] = left_out["tasks"]
    for name, count in rows.items():
        counts.add_row(name, str(count))
    return counts
