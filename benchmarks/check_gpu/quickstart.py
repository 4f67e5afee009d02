"""Check that the quickstart trains, and goes on after an interruption between its phases."""

import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.check_gpu.child import Figures

_WAYS: dict[str, dict[str, Any]] = {
    "lora": {"adapter": "lora", "dtype": "bfloat16", "phases": 3, "bits": 32},
    "qlora": {"adapter": "qlora", "dtype": "bfloat16", "phases": 2, "bits": 32},
    "full": {"adapter": "full", "dtype": "float32", "phases": 2, "bits": 8},
}
_WORSE_BY = 0.15
_SUCCESS = "val/answer_correct"
_SHOWN = (
    *(_SUCCESS, "val/solve_f1", "rollout/reward", "train/loss", "train/gradient_norm"),
    *("perf/update_tokens_per_second", "perf/peak_memory_gib", "time/phase"),
)


def run(figures: Figures, way: str) -> None:
    """Train one phase, then go on from its checkpoint to the last one.

    Args:
        figures: Where they go.
        way: ``lora``, ``qlora`` or ``full``.

    Raises:
        RuntimeError: Greedy success fell, or a figure is missing.
    """
    from pact_lightning.cli.main import main

    with tempfile.TemporaryDirectory() as folder:
        phases = _WAYS[way]["phases"] if figures.card else 2
        fit = ["fit", "-c", "recipes/quickstart.yaml", *_settings(Path(folder), way, card=figures.card)]
        main([*fit, "--trainer.max_epochs", "1"])
        print("-- interrupted after the first phase; going on", flush=True)
        main([*fit, "--trainer.max_epochs", str(phases), "--ckpt_path", "last"])
        rows = read_metrics(Path(folder))
    note_metrics(figures, rows, _SHOWN)
    successes = rows[_SUCCESS]
    if len(successes) < 2:
        raise RuntimeError(f"metrics.csv has {_SUCCESS} once; it should have it before and after training")
    figures.note("greedy success, before and after", [successes[0], successes[-1]])
    if successes[-1] < successes[0] - _WORSE_BY:
        raise RuntimeError(f"greedy success fell from {successes[0]:.2f} to {successes[-1]:.2f}")


def _settings(folder: Path, way: str, *, card: bool) -> list[str]:
    chosen = _WAYS[way]
    settings: dict[str, Any] = {
        "trainer.accelerator": "gpu" if card else "cpu",
        "trainer.devices": 1,
        "trainer.default_root_dir": folder,
        "trainer.logger.init_args.save_dir": folder,
        "trainer.check_val_every_n_epoch": 1,
        "model.init_args.policy.adapter": chosen["adapter"],
        "model.init_args.policy.dtype": chosen["dtype"],
        "model.init_args.optimizer.bits": chosen["bits"],
        "data.init_args.validation.init_args.count": 64 if card else 4,
    }
    if way == "full":
        settings["model.init_args.optimizer.learning_rate"] = 1e-4
    if not card:
        settings |= {"data.init_args.prompts_per_phase": 4, "data.init_args.rollouts_per_prompt": 2}
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def read_metrics(folder: Path) -> dict[str, list[float]]:
    """Read the values of every metric in their order, of all ``metrics.csv`` of a run."""
    found: dict[str, list[float]] = {}
    for path in sorted(folder.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value:
                        found.setdefault(name, []).append(float(value))
    return found


def note_metrics(figures: Figures, found: dict[str, list[float]], names: Sequence[str]) -> None:
    """Note every value of some metrics.

    Raises:
        RuntimeError: A run logged none of one of them.
    """
    for name in names:
        if name not in found:
            raise RuntimeError(f"metrics.csv has no {name}, only {', '.join(sorted(found))}")
        figures.note(name, [round(value, 4) for value in found[name]])
