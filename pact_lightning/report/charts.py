"""Charts of runs: which columns of ``metrics.csv`` stand together, and their points."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pact_lightning.report.rollouts import Json
from pact_lightning.utils.csv_rows import read_rows

MOST_POINTS = 500
"""Points of a curve; each of a longer one is the mean of several [D]."""
_OF_STEPS = ("train/", "anchor/", "mismatch/", "sft/")
_VALIDATION = "val/"

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Chart:
    """Chart of some columns.

    Attributes:
        key: Short name, for links.
        title: Title.
        about: A sentence on what to look for.
        columns: The columns, each with its label.
        stacked: Columns are parts of a whole, and are shown above each other.
        percent: Values are shares.
    """

    key: str
    title: str
    about: str
    columns: Mapping[str, str]
    stacked: bool = False
    percent: bool = False


def _named(folder: str, **labels: str) -> dict[str, str]:
    return {f"{folder}/{name}": label for name, label in labels.items()}


CHARTS = (
    Chart(
        "solve",
        "Solve rates from the prompt alone",
        "Validations within the fit: sub-questions solved of those asked (recall) and per call (precision).",
        _named("val", answer_correct="answers correct", solve_f1="F1", solve_p="precision", solve_r="recall"),
        percent=True,
    ),
    Chart(
        "reward",
        "Reward of training rollouts",
        "Mean sum of a rollout's turn rewards. It should rise.",
        _named("rollout", reward="reward"),
    ),
    Chart(
        "correct",
        "Training rollouts",
        "Answers that are correct, and prompts whose rollouts all scored the same and so give no learning signal.",
        _named("rollout", answer_correct="correct", zero_variance="no signal"),
        percent=True,
    ),
    Chart(
        "loss",
        "Loss by term",
        "The whole, and its parts before their coefficients. RL moves around 0; how large it is says little.",
        _named("train", loss="loss", rl_loss="RL", sft_loss="SFT"),
    ),
    Chart(
        "kl",
        "KL from the reference",
        "Nats per token, before its coefficient. A peak of a single step is common; a steady climb is drift.",
        _named("train", kl="KL"),
    ),
    Chart(
        "level",
        "Level of the trace",
        "Reasoning of the expert trace that is still supervised, from L4 (most) to L0 (none).",
        _named("anneal", level="level"),
    ),
    Chart(
        "scale",
        "Scale of the calls",
        "Weight of the expert trace's tool calls.",
        _named("anneal", tool_call_scale="call scale"),
    ),
    Chart(
        "gap",
        "Privilege gap",
        "Nats per token that the expert trace adds to the policy's own rollouts. It should stay or shrink.",
        _named(
            "privilege",
            gap="all",
            gap_reasoning="reasoning",
            gap_tool_call="calls",
            gap_answer="answer",
            gap_delimiter="delimiters",
        ),
    ),
    Chart(
        "entropy",
        "Entropy",
        "Nats per sampled token. Near 0 the rollouts of a prompt are all alike and nothing is left to learn from.",
        _named("rollout", entropy="rollouts") | _named("privilege", entropy_trace="with the trace"),
    ),
    Chart(
        "calls",
        "Turns and calls",
        "Per rollout.",
        _named("rollout", turns="turns", calls="calls", unique_calls="different calls"),
    ),
    Chart(
        "faults",
        "Tool use",
        "Rollouts with at least one such call, or with no call at all.",
        _named(
            "rollout",
            failed_call="failed call",
            malformed_call="malformed call",
            unknown_tool="unknown tool",
            no_call="no call",
        ),
        percent=True,
    ),
    Chart(
        "stops",
        "Stop reasons",
        "What ended the training rollouts.",
        _named(
            "rollout",
            stop_answered="answered",
            stop_max_turns="turns used up",
            stop_max_tokens_turn="turn too long",
            stop_max_tokens_trajectory="trajectory too long",
            stop_environment_failed="environment failed",
        ),
        stacked=True,
        percent=True,
    ),
    Chart(
        "seconds",
        "Seconds by part",
        "Of each phase.",
        _named(
            "time",
            prefill="prefill",
            decode="decode",
            tools="tools",
            wait="wait",
            credit="credit",
            old="old log-probs",
            reference="reference",
            forward="forward",
            backward="backward",
            step="optimiser",
            other="other",
        ),
        stacked=True,
    ),
    Chart("length", "Length of rollouts", "Tokens behind the prompt.", _named("rollout", tokens="tokens")),
    Chart(
        "clip",
        "Clipped tokens",
        "Tokens whose gradient the surrogate cuts off.",
        _named("train", clip_low="low", clip_high="high", clip_dual="dual"),
        percent=True,
    ),
    Chart(
        "gradient",
        "Gradient norm",
        "Before it is clipped.",
        _named("train", gradient_norm="norm"),
    ),
    Chart("rate", "Learning rate", "Of each step.", _named("train", learning_rate="learning rate")),
    Chart(
        "anchored",
        "Anchored prompts",
        "Prompts of a step that are scored without their expert trace, and those of them whose task has none.",
        _named("train", anchored="anchored") | _named("anchor", no_trace="without a trace"),
        percent=True,
    ),
)
"""The charts of a page, in order. A column that a run does not have is left out."""


def read_columns(path: Path) -> dict[str, list[Point]]:
    """Read the columns of a ``metrics.csv``.

    Args:
        path: The file; a last line that is cut off is left out.

    Returns:
        For each column its points. The first number counts optimiser steps from 0, of validations the finished steps,
        of all others phases from 0. Numbers that are not finite are left out.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no table.
    """
    found: dict[str, list[Point]] = defaultdict(list)
    for row in read_rows(path):
        for name, text in row.items():
            if not text or name in ("step", "epoch"):
                continue
            at = row.get("step") if name.startswith(_OF_STEPS) else row.get("epoch")
            if name.startswith(_VALIDATION):
                at = str(float(row["step"]) + 1) if row.get("epoch") and row.get("step") else "0"
            value = float(text)
            if at and math.isfinite(value):
                found[name].append((float(at), value))
    return found


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[list[float]]:
    """Return a curve of at most so many points; each is the mean of as many neighbours as are needed for that.

    >>> thinned([(0, 1.0), (1, 3.0), (2, 5.0)], most=2)
    [[0.5, 2.0], [2.0, 5.0]]
    """
    size = -(-len(points) // most)
    groups = [points[start : start + size] for start in range(0, len(points), size)] if points else []
    return [[_short(sum(column) / len(group)) for column in zip(*group, strict=True)] for group in groups]


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def charts_of(columns: Sequence[Mapping[str, Sequence[Point]]]) -> list[Json]:
    """Lay out the charts of some runs.

    Args:
        columns: The columns of each run.

    Returns:
        The charts of which any run has a column, and at their end one for each column that no chart names.
    """
    known = {name for chart in CHARTS for name in chart.columns}
    others = sorted({name for run in columns for name in run} - known)
    further = [Chart(name, name, "", {name: name}) for name in others if not name.startswith(_VALIDATION)]
    laid = [(_layout(chart, columns), chart in further) for chart in (*CHARTS, *further)]
    return [{**layout, "further": is_further} for layout, is_further in laid if layout["series"]]


def _layout(chart: Chart, columns: Sequence[Mapping[str, Sequence[Point]]]) -> Json:
    series = [
        {"run": number, "label": label, "points": thinned(run[name])}
        for number, run in enumerate(columns)
        for name, label in chart.columns.items()
        if run.get(name) and _tells(run[name], chart)
    ]
    return {
        "key": chart.key,
        "title": chart.title,
        "about": chart.about,
        "axis": _axis(next(iter(chart.columns))),
        "stacked": chart.stacked,
        "percent": chart.percent,
        "series": series,
    }


def _axis(column: str) -> str:
    if column.startswith(_VALIDATION):
        return "optimiser steps"
    return "optimiser step" if column.startswith(_OF_STEPS) else "phase"


def _tells(points: Sequence[Point], chart: Chart) -> bool:
    """Leave parts of a whole out that are never there."""
    return not chart.stacked or any(value for _, value in points)
