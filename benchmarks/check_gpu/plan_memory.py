"""Check of the peaks that ``pact-lightning plan`` foretells, beside those of fits on a card."""

import gc
import tempfile
from pathlib import Path

import torch

from benchmarks.check_gpu.child import Figures
from benchmarks.plan_error import CASES, Case, planned_bytes, save_model, saved_recipe

_MIB = 2**20
_GOAL = 0.15


def run(figures: Figures) -> None:
    """Plan and run the cases of ``make bench``'s row ``plan_error``; on a CPU the first one, small.

    Raises:
        RuntimeError: A plan is further from its peak than the row's goal allows.
    """
    errors = {}
    for case in CASES if figures.card else CASES[:1]:
        with figures.part(case.name), tempfile.TemporaryDirectory() as folder:
            planned, measured = _measure(case, Path(folder), card=figures.card)
            figures.note(f"{case.name}: planned, measured, MiB", [round(planned, 1), round(measured, 1)])
            if figures.card:
                errors[case.name] = round(planned / measured - 1, 4)
    if errors:
        figures.note("errors", errors)
        if max(map(abs, errors.values())) > _GOAL:
            raise RuntimeError(f"plans should be within {_GOAL:.0%} of the peak; they are off by {errors}")


def _measure(case: Case, folder: Path, *, card: bool) -> tuple[float, float]:
    """Return the planned and the measured peak in MiB; the latter is 0 on a CPU."""
    from pact_lightning.cli.main import main

    kind, where = ("cuda", "gpu") if card else ("cpu", "cpu")
    model = folder / "model" if card else Path("bundled")
    if card:
        save_model(model, case.vocabulary)
    recipe = saved_recipe(case, folder, str(model))
    planned = max(planned_bytes(recipe, kind))
    gc.collect()
    before = 0
    if card:
        # Libraries set themselves up before, and their workspaces are no tensors of the run.
        main(["fit", "-c", str(saved_recipe(case, folder, "bundled")), "--trainer.accelerator", where])
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    main(["fit", "-c", str(recipe), "--trainer.accelerator", where])
    # Every phase counts its own peak; this run has one, and the loading before it stays below.
    measured = torch.cuda.max_memory_allocated() - before if card else 0
    return planned / _MIB, measured / _MIB
