"""A trained policy, apart from the module that trained it: its weights, and what a model card says of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from pact_lightning.policy.loading import PolicyConfig
from pact_lightning.resume.checkpoint_files import newest_whole, read_checkpoint
from pact_lightning.resume.recipe_change import MADE_BY
from pact_lightning.utils.json_lines import scan_json_lines

_MAX_LINE_MB = 1024
Scores = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class TrainedPolicy:
    """Trained weights with their origin.

    Attributes:
        config: The config that the policy was loaded by.
        state: Its trained weights by name.
        method: Name of the class that trained it.
        recipe: The run's recipe, or the parts of it that are known.
        phases: Finished phases.
        steps: Optimiser steps.
        history: Finished phases and scores of each validation, oldest first.
        tasks: Number of validation tasks, where it is known.
    """

    config: PolicyConfig
    state: Mapping[str, Tensor]
    method: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    phases: int = 0
    steps: int = 0
    history: Sequence[tuple[float, Scores]] = ()
    tasks: int | None = None


def find_checkpoint(run: Path, weights_only: bool = True) -> Path:
    """Find a run's newest checkpoint that is whole.

    Args:
        run: The run's folder, or a checkpoint's file, which is returned.
        weights_only: As for :func:`~pact_lightning.resume.checkpoint_files.read_checkpoint`.

    Raises:
        FileNotFoundError: There is no such run, or it has no whole checkpoint.
        TypeError: The newest one holds more than weights and plain values.
    """
    if run.is_file():
        return run
    if not run.is_dir():
        raise FileNotFoundError(f"there is no run {run}; give a run's folder, such as runs/my/version_0")
    places = _checkpoint_folders(run)
    found = newest_whole((path for place in places for path in place.glob("*.ckpt")), weights_only, put_aside=False)
    if found is None:
        inner = sorted(path.parent.parent for path in run.glob("*/checkpoints/*.ckpt"))
        hint = f"name one of the runs in it, such as {inner[-1]}" if inner else "give a checkpoint with --ckpt_path"
        raise FileNotFoundError(f"there is no whole checkpoint in {' or '.join(map(str, places))}; {hint}")
    return found[0]


def run_of(checkpoint: Path) -> Path:
    """Return the folder of the run that a checkpoint lies in."""
    folder = checkpoint.parent
    return folder.parent if folder.name == "checkpoints" else folder


def read_trained(checkpoint: Path, run: Path, *, model: str | None = None, weights_only: bool = True) -> TrainedPolicy:
    """Read a checkpoint of this package.

    Args:
        checkpoint: The file.
        run: The run's folder, whose trajectories tell the number of tasks.
        model: Folder or hub id of the base, if it is elsewhere now.
        weights_only: As for :func:`~pact_lightning.resume.checkpoint_files.read_checkpoint`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not whole, or does not say what made it.
        TypeError: It holds more than weights and plain values.
    """
    if not checkpoint.is_file():
        raise FileNotFoundError(f"there is no checkpoint {checkpoint}; give a file that ModelCheckpoint wrote")
    content = read_checkpoint(checkpoint, weights_only)
    made_by = content.get(MADE_BY)
    if not isinstance(made_by, Mapping) or not isinstance(made_by.get("policy"), Mapping):
        raise ValueError(
            f"the checkpoint {checkpoint} does not say which policy it is of, as those of other programs; export one "
            "that `pact-lightning fit` wrote"
        )
    known = {each.name for each in fields(PolicyConfig)}
    saved = {name: value for name, value in made_by["policy"].items() if name in known}
    history = [(float(phase), dict(scores)) for phase, scores in content.get("validation_history", [])]
    progress = content["loops"].get("fit_loop", {}).get("epoch_progress", {}).get("current", {})
    return TrainedPolicy(
        PolicyConfig(**saved | ({} if model is None else {"model": model})),
        content["state_dict"],
        str(made_by["module"]),
        made_by["recipe"],
        int(progress.get("processed", content["epoch"])),
        int(content["global_step"]),
        history,
        count_tasks(run, history),
    )


def count_tasks(run: Path, history: Sequence[tuple[float, Scores]]) -> int | None:
    """Count the tasks of the last validation within a fit by its trajectories, where they are still there.

    Args:
        run: The run's folder.
        history: Finished phases and scores of each validation.
    """
    phases = int(history[-1][0]) if history else 0
    files = sorted(run.glob(f"trajectories/validation-{phases:04}*.jsonl"))
    lines = [line for path in files for line in scan_json_lines(path, _MAX_LINE_MB)]
    return len({line.value["task_id"] for line in lines if isinstance(line.value, dict)}) or None


def _checkpoint_folders(run: Path) -> list[Path]:
    """List the folders of a run's checkpoints: that in its own, and those that its recipe names."""
    places = [run / "checkpoints"]
    config = run / "config.yaml"
    if config.is_file():
        recipe = yaml.safe_load(config.read_text(encoding="utf-8"))
        trainer = recipe.get("trainer") if isinstance(recipe, Mapping) else None
        for callback in (trainer or {}).get("callbacks") or []:
            if isinstance(callback, Mapping) and str(callback.get("class_path")).endswith(".ModelCheckpoint"):
                named = (callback.get("init_args") or {}).get("dirpath")
                places += [Path(named)] if named else []
    return list(dict.fromkeys(places))
