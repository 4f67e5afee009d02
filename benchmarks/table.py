"""Table of the rows, on the terminal and in a page of the documentation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

_BEGIN, _END = "<!-- table: begin -->", "<!-- table: end -->"
_HEADINGS = ("row", "ours", "peer", "unit", "ratio", "goal", "reached", "repeats", "seconds, ours; peer")
_ON_TERMINAL = _HEADINGS.index("repeats")


def bench_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Tabulate the rows for the terminal, in as many columns as fit there."""
    table = Table(*_HEADINGS[:_ON_TERMINAL])
    for row in rows:
        table.add_row(*_cells(row)[:_ON_TERMINAL])
    return table


def write_into_page(page: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Replace the table of a page, which stands between two marks, and name the machine under it.

    Raises:
        ValueError: The page lacks the marks, or there are no rows.
    """
    text = page.read_text(encoding="utf-8")
    if _BEGIN not in text or _END not in text:
        raise ValueError(f"{page} has no place for a table; put the lines {_BEGIN} and {_END} into it")
    if not rows:
        raise ValueError("there are no rows to write; run `make bench` first")
    lines = [_line(_HEADINGS), _line("---" for _ in _HEADINGS), *(_line(_cells(row)) for row in rows)]
    machines = sorted({_sentence(row["settings"]["machine"]) for row in rows})
    shares = [_shares(row) for row in rows if "time_shares_of_ours" in row["settings"]]
    measured = [f"Measured on: {machine}." for machine in machines]
    table = "\n".join([*lines, "", *measured, "", *(f"- {share}" for share in shares)])
    before, rest = text.split(_BEGIN, 1)
    after = rest.split(_END, 1)[1]
    page.write_text(f"{before}{_BEGIN}\n{table}\n{_END}{after}", encoding="utf-8")


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(row: dict[str, Any]) -> list[str]:
    at_least = row["settings"]["goal_is"] == "at least"
    reached = row["ratio"] >= row["goal"] if at_least else row["ratio"] <= row["goal"]
    return [
        row["bench"],
        _figure(row["ours"]),
        _figure(row["peer"]),
        str(row["settings"].get("unit", "")),
        f"{row['ratio']:.3g}",
        f"{row['settings']['goal_is']} {row['goal']:g}",
        "yes" if reached else "no",
        str(row["repeats"]),
        _spread(row["settings"].get("spread", {})),
    ]


def _spread(seconds: dict[str, list[float]]) -> str:
    return "; ".join(f"{shortest:.3g} to {longest:.3g}" for shortest, longest in list(seconds.values())[:2]) or "-"


def _shares(row: dict[str, Any]) -> str:
    shares = row["settings"]["time_shares_of_ours"]
    parts = ", ".join(f"{100 * share:.0f} % {name}" for name, share in shares.items())
    return f"Time of `{row['bench']}` in torch's operators, ours, one run under the profiler: {parts}."


def _figure(value: float | list[float] | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(_figure(entry) for entry in value)
    return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def _sentence(machine: dict[str, Any]) -> str:
    facts = dict(machine)
    device, cores, threads = facts.pop("device"), facts.pop("cores"), facts.pop("threads")
    versions = ", ".join(f"{name} {version}" for name, version in facts.items())
    return f"{device}, {cores} cores, {threads} threads; {versions}"
