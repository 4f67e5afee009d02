"""Report of the checks, written anew whenever one begins or ends."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from benchmarks.check_gpu.checks import Check

PASSED, RUNNING, NOT_RUN = "pass", "running", "not run"
_SHOWN = ("torch", "triton", "transformers", "peft", "lightning", "bitsandbytes", "trl", "accelerate", "pydantic")


@dataclass
class Outcome:
    """Result of a check.

    Attributes:
        check: The check.
        result: ``pass``, ``running``, ``not run: why``, or ``fail: the first line of the error``.
        seconds: How long it ran.
        card_gib: The most of the card's memory that was seen in use, by whatever process.
        figures: What it measured.
    """

    check: Check
    result: str
    seconds: float = 0.0
    card_gib: float | None = None
    figures: dict[str, Any] = field(default_factory=dict)


def write_report(path: Path, outcomes: Sequence[Outcome], head: Sequence[str], *, cpu: bool) -> None:
    """Write the report, whole or not at all."""
    lines = ["# Check on a CPU, with tiny shapes" if cpu else "# Check on a card", "", *head, ""]
    lines += ["| check | result | seconds | card memory, GiB | what it shows |", "| --- | --- | --- | --- | --- |"]
    for outcome in outcomes:
        memory = "-" if outcome.card_gib is None else f"{outcome.card_gib:.2f}"
        cells = (outcome.check.name, outcome.result, f"{outcome.seconds:.0f}", memory, outcome.check.what)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += ["", "Card memory is the most that was seen in use, once a second, checks beside it included.", ""]
    for outcome in outcomes:
        if outcome.figures:
            lines += [f"## {outcome.check.name}", ""]
            lines += [f"- {name}: {_told(value)}" for name, value in outcome.figures.items()]
            lines.append("")
    if cpu:
        lines += ["## Not shown on a CPU", ""]
        lines += [f"- not shown on a CPU: {o.check.only_a_card} ({o.check.name})" for o in outcomes]
        lines.append("")
    new = path.with_suffix(".new")
    new.write_text("\n".join(lines), encoding="utf-8")
    new.replace(path)


def _told(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def describe_machine(packages: Sequence[str]) -> list[str]:
    """Describe card, driver, Python and versions; nothing heavy is imported.

    Args:
        packages: Folders in front of those in which Python finds packages.
    """
    found: dict[str, str] = {}
    for distribution in (*distributions(path=list(packages)), *distributions()):
        found.setdefault(str(distribution.metadata["Name"]).lower(), distribution.version)
    versions = ", ".join(f"{name} {found[name]}" for name in _SHOWN if name in found)
    card = ask_card("name,driver_version,memory.total")
    return [
        f"- begun: {time.strftime('%Y-%m-%d %H:%M:%S')}",
        f"- card, driver, memory: {card or 'nvidia-smi shows none'}",
        f"- python {platform.python_version()}, {os.cpu_count()} cores; {versions}",
        f"- missing: {', '.join(name for name in _SHOWN if name not in found) or 'none of these'}",
    ]


def ask_card(fields: str) -> str | None:
    """Ask ``nvidia-smi`` about the first card.

    Returns:
        Its answer; ``None`` where there is none within 10 seconds.
    """
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().partition("\n")[0] or None
