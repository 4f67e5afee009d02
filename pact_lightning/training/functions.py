"""Functions for programs and notebooks: a Trainer with the usual settings around a module and its data."""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from pact_lightning.callbacks.annealing import AnnealingCallback
from pact_lightning.resume.last_checkpoint import last_checkpoint
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.training.policy_module import PolicyModule
from pact_lightning.training.task_datamodule import TaskDataModule
from pact_lightning.types.task import Task, TaskSource

FOLDER = "runs/python"


def fit(
    module: PolicyModule,
    data: TaskDataModule,
    *,
    phases: int,
    folder: str | Path = FOLDER,
    resume: bool = False,
    **trainer: Any,
) -> pl.Trainer:
    """Train a policy.

    The same as ``lightning.pytorch.Trainer(...).fit(module, data)`` with what the recipes have: supervision by the
    trace that fades (:class:`~pact_lightning.AnnealingCallback`), a checkpoint after each phase, and ``metrics.csv``.

    Args:
        module: The policy and its method.
        data: The tasks and how they are rolled out.
        phases: Phases in all, those of a resumed run included [P]: 24.
        folder: Where the run's files go, in ``version_0``, ``version_1``, ...
        resume: Go on from the newest checkpoint in ``folder``, if there is one.
        **trainer: Arguments of Lightning's Trainer, which stand before those set here; ``callbacks`` are added, and a
            ``logger`` other than CSVLogger and TensorBoardLogger is added to that of ``metrics.csv``.

    Returns:
        The Trainer: ``callback_metrics`` has the last metrics, ``log_dir`` the run's folder.

    Raises:
        ValueError: A setting cannot be honoured, or tasks are missing or wrong.
    """
    given: list[Callback] = list(trainer.pop("callbacks", None) or [])
    usual: list[Callback] = [ModelCheckpoint(save_last=True, save_on_train_epoch_end=True)]
    if isinstance(module, PACTModule):
        usual.append(AnnealingCallback())
    callbacks = [*(each for each in usual if not any(isinstance(mine, type(each)) for mine in given)), *given]
    loggers = trainer.pop("logger", True)
    if not isinstance(loggers, bool):
        # Lightning's folder of a run is the first logger's, and of most loggers that is where the program was started.
        loggers = [*loggers] if isinstance(loggers, Iterable) else [loggers]
        if not isinstance(loggers[0] if loggers else None, CSVLogger | TensorBoardLogger):
            loggers = [CSVLogger(str(folder), name=""), *loggers]
    settings = {
        "max_epochs": phases,
        "logger": CSVLogger(str(folder), name="") if loggers is True else loggers,
        "num_sanity_val_steps": -1,  # validates before training too
        "log_every_n_steps": 1,
    }
    made = _trainer(folder, settings | trainer, callbacks)
    made.fit(module, data, ckpt_path=last_checkpoint(made) if resume else None)
    return made


def evaluate(
    module: PolicyModule,
    data: TaskDataModule,
    *,
    on: Literal["validation", "test"] = "validation",
    checkpoint: str | Path | None = None,
    folder: str | Path = FOLDER,
    **trainer: Any,
) -> dict[str, float]:
    """Score a policy on the validation or the test tasks, prompt only.

    Args:
        module: The policy, with the weights that it has, such as those after :func:`fit`.
        data: The tasks and, as ``evaluation``, how they are rolled out.
        on: Which tasks.
        checkpoint: A file whose weights are loaded before.
        folder: Where trajectories and ``results-*.json`` go.
        **trainer: Arguments of Lightning's Trainer.

    Returns:
        The scores by name, such as ``answer_correct``.

    Raises:
        ValueError: There are no such tasks.
    """
    made = _trainer(folder, {"logger": False, "enable_checkpointing": False} | trainer)
    run = made.validate if on == "validation" else made.test
    (scores,) = run(module, datamodule=data, ckpt_path=checkpoint, verbose=False)
    return {name.partition("/")[2]: float(value) for name, value in scores.items()}


def roll_out(
    module: PolicyModule,
    data: TaskDataModule,
    tasks: TaskSource | Sequence[Task] | None = None,
    *,
    checkpoint: str | Path | None = None,
    folder: str | Path = FOLDER,
    **trainer: Any,
) -> list[dict[str, Any]]:
    """Roll out tasks, and return what the policy said and did.

    Args:
        module: The policy, with the weights that it has.
        data: How they are rolled out: its ``limits`` and ``evaluation``.
        tasks: The tasks, by default those that ``data`` has for prediction.
        checkpoint: A file whose weights are loaded before.
        folder: Where the trajectories go.
        **trainer: Arguments of Lightning's Trainer.

    Returns:
        One record for each rollout, in OpenAI's message format with its scores, as in ``trajectories/predict.jsonl``.

    Raises:
        ValueError: There are no tasks.
    """
    if tasks is not None:
        data = copy.copy(data)
        data.sources, data.tasks = {"predict": tasks}, {}  # type: ignore[dict-item]  # read by load_source
    made = _trainer(folder, {"logger": False, "enable_checkpointing": False} | trainer)
    batches = made.predict(module, datamodule=data, ckpt_path=checkpoint) or []
    return [record for batch in batches for record in batch]


def _trainer(folder: str | Path, settings: dict[str, Any], callbacks: Sequence[Callback] = ()) -> pl.Trainer:
    usual: dict[str, Any] = {"devices": 1, "default_root_dir": str(folder), "enable_model_summary": False}
    return pl.Trainer(**usual | {"callbacks": [*callbacks]} | settings)
