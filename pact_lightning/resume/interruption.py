"""Interruptions: signals and errors that stop a run, the save that follows, and the line that says how to go on."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from pact_lightning.resume.checkpoint_files import is_remote
from pact_lightning.resume.lightning_internals import cluster_environment
from pact_lightning.utils.errors import RunStoppedError
from pact_lightning.utils.processes import only_tries, run_folder

NAME = "last-interrupted.ckpt"
"""It begins with ``last``, so that ``--ckpt_path last`` finds it, by Lightning's own search too."""
STOPPED = "last-stopped.ckpt"
"""The checkpoint of a run that cannot go on: a server is away, or too many steps were skipped."""


class Interruption(pl.Callback):
    """A callback that waits for a moment at which the run can be saved; every ``PolicyModule`` brings one.

    Such moments are between two optimiser steps, between two steps of the sampler while rollouts are made, and before
    a phase. Several processes stop together, and so only between optimiser steps and before a phase.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._requeue: Callable[[int, FrameType | None], Any] | None = None
        self._trainer: pl.Trainer | None = None
        self._found_as_last = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Note whether ``last`` will find what is saved: in a folder of a ModelCheckpoint, named or counted."""
        del pl_module, stage
        self._found_as_last = any(
            isinstance(callback, ModelCheckpoint) and (callback.dirpath or trainer.loggers)
            for callback in trainer.checkpoint_callbacks
        )

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Handle the signals, which Lightning has just claimed."""
        self.on_train_start(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Handle the signals, as before the sanity check."""
        del pl_module
        if only_tries(trainer) or self._trainer is trainer or threading.current_thread() is not threading.main_thread():
            return
        self._trainer = trainer
        self._signal = None
        environment = cluster_environment(trainer)
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            requeue_signal = environment.requeue_signal or signal.SIGUSR1
            handler = signal.getsignal(requeue_signal)
            self._requeue = handler if callable(handler) else None
            signal.signal(requeue_signal, self._received)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._received)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove what an interruption of this run had saved; its end is saved otherwise."""
        del pl_module
        if only_tries(trainer):  # what is there is of the run that is tried
            return
        for path in (save_path(trainer), save_path(trainer, STOPPED)):
            if trainer.is_global_zero and not is_remote(path):
                Path(path).unlink(missing_ok=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget the run; Lightning has given the signals back."""
        del trainer, pl_module, stage
        self._trainer = None

    def save_stopped(self, trainer: pl.Trainer) -> str:
        """Save a fit that cannot go on, where an interrupted one is saved.

        Returns:
            Where it is, and how to go on, as the rest of a sentence.
        """
        path = save_path(trainer, STOPPED)
        trainer.save_checkpoint(path, weights_only=False)
        return f"saved as {path}; resume with --ckpt_path {'last' if self._found_as_last else path}"

    @contextmanager
    def saved_where_stopped(self, trainer: pl.Trainer) -> Iterator[None]:
        """Save the state where an error stops the run, and add to its sentence how the run goes on.

        Args:
            trainer: The Trainer.

        Raises:
            RunStoppedError: The error, of its public kind, such as ``EnvironmentUnavailableError``.
        """
        try:
            yield
        except RunStoppedError as error:
            public = next(kind for kind in type(error).__mro__ if RunStoppedError in kind.__bases__)
            raise public(f"{error}. {self._saved(trainer, error.once)}") from error

    def _saved(self, trainer: pl.Trainer, once: str) -> str:
        """Save a fit that has to stop, and say how it goes on once something has happened."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or only_tries(trainer):
            return f"Nothing had to be saved; run the command again once {once}"
        if trainer.world_size > 1:  # saving would wait for the other processes
            return f"All finished phases are in the last checkpoint; resume with --ckpt_path last once {once}"
        what = "Everything up to the last finished phase" if trainer.global_step else "The start of the first phase"
        return f"{what} is {self.save_stopped(trainer)} once {once}"

    def between_sampler_steps(self) -> None:
        """Stop a run of one process whose signal has come.

        Raises:
            SystemExit: The run is saved and stopped.
        """
        if self._signal is None or self._trainer is None or self._trainer.world_size > 1:
            return
        # The scores of the check before the first phase are in no checkpoint before it has ended.
        if not (self._trainer.sanity_checking and self._requeues(self._signal)):
            self._act(self._trainer)

    def between_steps(self) -> None:
        """Stop a run whose signal has come, to whichever of its processes.

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
            rank_zero_info(f"stopped by {name} before the first phase; to start again, run the same command")
        else:
            path = save_path(trainer)
            trainer.save_checkpoint(path, weights_only=False)
            rank_zero_info(
                f"stopped by {name} in phase {trainer.current_epoch} and saved as {path}; "
                "to resume, run the same command with --ckpt_path last"
            )
        raise SystemExit(128 + number)


def save_path(trainer: pl.Trainer, name: str = NAME) -> str:
    """Return where an interrupted run is saved: beside its other checkpoints, else in its own folder."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath:
            return os.path.join(callback.dirpath, name)  # noqa: PTH118  # it may be a remote address
    return str(run_folder(trainer) / "checkpoints" / name)
