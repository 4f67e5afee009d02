"""Pictures of a comparison as SVG and PNG: learning curves, and scores as bars. They need matplotlib, an extra."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pact_lightning.compare.results import Cell, Setting
from pact_lightning.compare.statistics import Interval, mean_interval
from pact_lightning.compare.tables import curve_of, methods_of, regimes_of, scores_after, settings_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES, SCORES = "curves", "scores"
"""Names of the pictures, without their suffix."""
SUFFIXES = (".svg", ".png")
_DOTS_PER_INCH = 100


def draw(cells: Sequence[Cell], metric: str, against: str, folder: Path) -> list[Path]:
    """Draw what there is to draw.

    Args:
        cells: The runs.
        metric: The metric.
        against: The method that comes first.
        folder: Where the pictures go.

    Returns:
        The files: curves where a fit was validated twice at least, and scores.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    _check_available()
    panels = [
        (regime, setting, [cell for cell in cells if cell.regime == regime])
        for regime in regimes_of(cells)
        for setting in settings_of([cell for cell in cells if cell.regime == regime])
    ]
    written = []
    curves = [panel for panel in panels if any(len(cell.curve(panel[1])) > 1 for cell in panel[2])]
    for name, shown, draw_panel in ((CURVES, curves, _draw_curves), (SCORES, panels, _draw_bars)):
        if not shown:
            continue
        figure, axes = _figure(len(shown))
        for place, (regime, setting, within) in zip(axes, shown, strict=True):
            draw_panel(place, within, metric, setting, against)
            place.set_title(f"{regime}: {setting}" if regime else str(setting), fontsize="medium")
            place.set_ylabel(metric)
        figure.tight_layout()
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in SUFFIXES:
            path = folder / f"{name}{suffix}"
            figure.savefig(path, dpi=_DOTS_PER_INCH, metadata={"Date": None} if suffix == ".svg" else None)
            written.append(path)
    return written


def _check_available() -> None:
    try:
        import matplotlib  # noqa: F401  # only whether it is there
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "no pictures were drawn because matplotlib is not installed; pip install 'pact-lightning[pictures]' and "
            "repeat the command"
        ) from error


def _figure(panels: int) -> tuple["Figure", Sequence["Axes"]]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "pact-lightning"  # so that the same comparison gives the same file
    columns = min(panels, 2)
    rows = -(-panels // columns)
    figure = Figure(figsize=(5.5 * columns, 3.8 * rows))
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    for unused in axes.flat[panels:]:
        unused.remove()
    return figure, list(axes.flat[:panels])


def _draw_curves(axes: "Axes", cells: Sequence[Cell], metric: str, setting: Setting, against: str) -> None:
    for method in methods_of(cells, against):
        points = {steps: mean_interval(of) for steps, of in curve_of(cells, method, setting, metric).items()}
        if points:
            _draw_curve(axes, method, points)
    axes.set_xlabel("optimiser steps")
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_curve(axes: "Axes", method: str, points: dict[int, Interval]) -> None:
    steps = list(points)
    (line,) = axes.plot(steps, [point.mean for point in points.values()], marker="o", label=method)
    lows, highs = [point.low for point in points.values()], [point.high for point in points.values()]
    axes.fill_between(steps, lows, highs, color=line.get_color(), alpha=0.15, linewidth=0)


def _draw_bars(axes: "Axes", cells: Sequence[Cell], metric: str, setting: Setting, against: str) -> None:
    found = {method: scores_after(cells, method, setting, metric) for method in methods_of(cells, against)}
    bars = {method: mean_interval(scores) for method, scores in found.items() if scores}
    means = np.array([bar.mean for bar in bars.values()])
    ends = np.array([[bar.mean - bar.low, bar.high - bar.mean] for bar in bars.values()]).T  # [2, methods]
    axes.bar(list(bars), means, yerr=np.maximum(ends, 0), capsize=4)
    axes.tick_params(axis="x", rotation=30)
    axes.grid(axis="y", alpha=0.3)
