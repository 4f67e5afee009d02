"""SIGTERM, SIGINT and SLURM's signal: the step in work is finished, the run is saved, and a line says how to go on."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from pact_lightning.resume.checkpoint_files import is_remote

NAME = "last-interrupted.ckpt"
"""Begins with ``last``, so that ``--ckpt_path last`` finds it, Lightning's own search included."""
STOPPED = "last-stopped.ckpt"
"""What a run leaves that cannot go on: a server is away, or too many steps were skipped."""


class Interruption(pl.Callback):
    """Waits for a moment at which a run can be saved; every ``PolicyModule`` brings one.

    Such moments are between two optimiser steps, between two steps of the sampler while rollouts are made, and before
    a phase. Several processes stop together, and so only between optimiser steps and before a phase.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._requeue: Callable[[int, FrameType | None], Any] | None = None
        self._trainer: pl.Trainer | None = None
        self._found_as_last = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Looks whether the recipe names a folder for checkpoints, before Lightning chooses one itself."""
        del pl_module, stage
        self._found_as_last = any(
            isinstance(callback, ModelCheckpoint) and callback.dirpath for callback in trainer.checkpoint_callbacks
        )

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the signals, which Lightning has just taken."""
        self.on_train_start(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As before the check of the start."""
        del pl_module
        if self._trainer is trainer or threading.current_thread() is not threading.main_thread():
            return
        self._trainer = trainer
        self._signal = None
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            requeue_signal = environment.requeue_signal or signal.SIGUSR1
            handler = signal.getsignal(requeue_signal)
            self._requeue = handler if callable(handler) else None
            signal.signal(requeue_signal, self._received)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._received)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Removes what an interruption of this run had saved; its end is saved otherwise."""
        del pl_module
        for path in (save_path(trainer), save_path(trainer, STOPPED)):
            if trainer.is_global_zero and not is_remote(path):
                Path(path).unlink(missing_ok=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forgets the run; Lightning has given the signals back."""
        del trainer, pl_module, stage
        self._trainer = None

    def save_stopped(self, trainer: pl.Trainer) -> str:
        """Saves a fit that cannot go on, where an interrupted one is saved.

        Returns:
            Where it is, and how to go on, as the rest of a sentence.
        """
        path = save_path(trainer, STOPPED)
        trainer.save_checkpoint(path, weights_only=False)
        return f"saved as {path}; go on with --ckpt_path {'last' if self._found_as_last else path}"

    def between_sampler_steps(self) -> None:
        """Stops a run of one process whose signal has come.

        Raises:
            SystemExit: The run is saved and stopped.
        """
        if self._signal is None or self._trainer is None or self._trainer.world_size > 1:
            return
        # The scores of the check before the first phase are in no checkpoint before it has ended.
        if not (self._trainer.sanity_checking and self._requeues(self._signal)):
            self._act(self._trainer)

    def between_steps(self) -> None:
        """Stops a run whose signal has come, to whichever of its processes.

        Raises:
            SystemExit: The run is saved and stopped.
        """
        if self._trainer is None:
            return
        if self._trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False):
            self._act(self._trainer)

    def _received(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number
        # Not through logging or print, which this may have interrupted.
        os.write(2, f"\n{signal.Signals(number).name}: stopping at the next step\n".encode())
        launcher = None if self._trainer is None else self._trainer.strategy.launcher
        if launcher is not None and number != signal.SIGINT:  # the terminal sends that to all by itself
            launcher.kill(number)

    def _requeues(self, number: int) -> bool:
        return self._requeue is not None and number not in (signal.SIGTERM, signal.SIGINT)

    def _act(self, trainer: pl.Trainer) -> None:
        number, self._signal = self._signal or signal.SIGTERM, None
        if self._requeue is not None and self._requeues(number):
            self._requeue(number, None)  # SLURM ends the run
            return
        name = signal.Signals(number).name
        if trainer.sanity_checking:
            rank_zero_info(f"stopped by {name} before the first phase; to start again, repeat the command")
        else:
            path = save_path(trainer)
            trainer.save_checkpoint(path, weights_only=False)
            rank_zero_info(
                f"stopped by {name} in phase {trainer.current_epoch} and saved as {path}; "
                "to go on, repeat the command with --ckpt_path last"
            )
        raise SystemExit(128 + number)


def save_path(trainer: pl.Trainer, name: str = NAME) -> str:
    """Where an interrupted run is saved: beside its other checkpoints, or, without any, in its own folder."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath:
            return os.path.join(callback.dirpath, name)  # noqa: PTH118  # it may be a remote address
    return str(Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints" / name)
