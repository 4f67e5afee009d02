"""Lines of the rows for the terminal, and their table in a page of the documentation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_BEGIN, _END = "<!-- table: begin -->", "<!-- table: end -->"
_HEADINGS = ("row", "ours", "peer", "unit", "ratio", "goal", "reached", "rounds", "spread, ours; peer", "commit, date")
_WIDTHS = (23, 8, 8, 8, 6, 13, 7)


def heading_line() -> str:
    """Return the heading of the lines that `row_line` makes."""
    return _columns("row", "ours", "peer", "unit", "ratio", "goal", "reached")


def row_line(row: dict[str, Any]) -> str:
    """Return a row as one line of at most 80 columns, for a terminal and for a log file."""
    return _columns(*_cells(row)[: _HEADINGS.index("rounds")])


def reason_line(name: str, what: str, reason: str) -> str:
    """Return the line of a row without figures.

    Args:
        name: Name of the row.
        what: Whether it failed, or was skipped.
        reason: Why, in one line.
    """
    return f"{name:<{_WIDTHS[0]}} {what}: {reason}"


def _columns(name: str, *cells: str) -> str:
    left = {3, 5, 6}  # unit, goal, reached
    columns = [f"{name:<{_WIDTHS[0]}}"]
    for number, (cell, width) in enumerate(zip(cells, _WIDTHS[1:], strict=True), start=1):
        columns.append(f"{cell:<{width}}" if number in left else f"{cell:>{width}}")
    return " ".join(columns).rstrip()


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
    notes = [_cases(row) for row in rows if "cases" in row["settings"]]
    notes += [_shares(row) for row in rows if "time_shares_of_ours" in row["settings"]]
    measured = [f"Measured on: {machine}." for machine in machines]
    table = "\n".join([*lines, "", *measured, "", *(f"- {note}" for note in notes)])
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
        " ".join(row["settings"][key] for key in ("commit", "date") if key in row["settings"]),
    ]


def _spread(seconds: dict[str, list[float]]) -> str:
    return "; ".join(f"{shortest:.3g} to {longest:.3g}" for shortest, longest in list(seconds.values())[:2]) or "-"


def _cases(row: dict[str, Any]) -> str:
    cases = row["settings"]["cases"].items()
    figures = ", ".join(f"{name} {_figure(ours)} and {_figure(peer)}" for name, (ours, peer) in cases)
    return f"`{row['bench']}`, ours and peer of every case ({row['settings']['unit']}): {figures}."


def _shares(row: dict[str, Any]) -> str:
    shares = row["settings"]["time_shares_of_ours"]
    parts = ", ".join(f"{100 * share:.0f} % {name}" for name, share in shares.items())
    return f"Time of `{row['bench']}` in torch's operators, ours, one run under the profiler: {parts}."


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if 1_000 <= abs(value) < 1_000_000 else f"{value:.3g}"


def _sentence(machine: dict[str, Any]) -> str:
    facts = dict(machine)
    device, cores, threads = facts.pop("device"), facts.pop("cores"), facts.pop("threads")
    versions = ", ".join(f"{name} {version}" for name, version in facts.items())
    return f"{device}, {cores} cores, {threads} threads; {versions}"
