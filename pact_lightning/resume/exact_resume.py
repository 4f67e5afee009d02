"""Exact resume: a run resumed from any of its checkpoints repeats the uninterrupted run, row for row of its metrics.

Lightning resumes well from the end of an epoch. A checkpoint may also be written in the middle of one (by a signal, by
``every_n_train_steps``, by a run that cannot go on), and then Lightning loses something in each hook:

======================  ===========================================================  =================================
written in              what Lightning loses                                         how it is put back
======================  ===========================================================  =================================
``on_train_batch_end``  the step is done but not counted                             :func:`settle` counts it
``on_train_batch_end``  the step's metrics: it logs them after the hook              ``rows``, logged when resumed
between two steps       ``on_train_epoch_start``, which sets the supervision         :func:`settle`: the epoch is about
                                                                                     to start, with steps done
between two steps       the epoch's means of the steps before                        ``epoch_metrics``, logged again
a validation            the rest of that validation                                  :func:`settle`: begun, not ended
``on_train_epoch_end``  the epoch's metrics: it logs them after the hook             ``rows``
before the run          ``metrics.csv``, which it deletes when a logger is made      :class:`MetricsFile`
======================  ===========================================================  =================================

A checkpoint written anywhere is thus put into one of two forms: the phase has made no step, as if the phase before had
just ended; or it has made ``steps`` steps, as if the epoch were about to start with so many batches done. The random
draws need no state: each is seeded from what it is for.
"""

from collections.abc import Mapping, MutableMapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info

from pact_lightning.resume.lightning_internals import (
    BATCHES,
    EPOCHS,
    STATE,
    STEPS,
    VALIDATION_BATCHES,
    csv_writer,
    epoch_metrics,
    folder_version,
    logs_this_step,
    set_csv_writer,
    validates_after_epoch,
)
from pact_lightning.resume.metrics_file import MetricsFile

Loops = MutableMapping[str, Any]
_KEY = "exact_resume"


class ExactResume(pl.Callback):
    """Counters, metrics and the metrics file of an interrupted run, kept whole; every ``PolicyModule`` brings one."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._epoch_metrics: dict[str, float] = {}

    @staticmethod
    def prepare(trainer: pl.Trainer) -> None:
        """Keep ``metrics.csv`` from being deleted: by a fit not yet, by an evaluation not at all."""
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger) and csv_writer(logger) is None:
                file = MetricsFile(logger.log_dir)
                set_csv_writer(logger, file)
                if trainer.state.fn != "fit":
                    file.begin_behind()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Settle the counters and add what Lightning has not logged yet."""
        del pl_module
        if trainer.state.fn != "fit":
            return
        loops = checkpoint["loops"]["fit_loop"]
        steps = steps_done(loops)
        means = epoch_metrics(trainer, on_step=False)
        rows = []
        stepped = int(loops[STATE][STEPS])
        epochs = loops[EPOCHS]["current"]
        if steps is None and epochs["completed"] < epochs["processed"]:
            rows.append({"step": stepped - 1, "epoch": trainer.current_epoch, "metrics": means})
        elif steps is not None and in_batch_end(loops) and logs_this_step(trainer):
            of_step = epoch_metrics(trainer, on_step=True)
            rows.append({"step": stepped, "epoch": trainer.current_epoch, "metrics": of_step})
        settle(loops, phase_steps=int(trainer.num_training_batches), validates=validates_after_epoch(trainer))
        checkpoint[_KEY] = {
            "rows": rows,
            "epoch_metrics": means if steps else {},
            "steps": steps or 0,
            "written": max((file.saved_rows() for file in _metrics_files(trainer)), default=0),
            "versions": [folder_version(logger) for logger in trainer.loggers],
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take up what was saved, say where the run goes on, and keep the rows that the checkpoint knows of.

        Raises:
            ValueError: What was saved has another form.
        """
        del pl_module
        if trainer.state.fn != "fit":
            return
        if problem := what_is_wrong(checkpoint):
            raise ValueError(
                f"a fit cannot resume from the checkpoint {trainer.ckpt_path}: {problem}; use an earlier one"
            )
        kept: Mapping[str, Any] = checkpoint.get(_KEY, {})
        self._rows = list(kept.get("rows", []))
        self._epoch_metrics = dict(kept.get("epoch_metrics", {}))
        for file in _metrics_files(trainer):
            if not file.begun:
                file.begin(int(kept.get("written", 0)))
        rank_zero_info(f"resumed from {trainer.ckpt_path} at {resumed_at(checkpoint)}")
        if nothing := nothing_left(checkpoint, trainer.max_epochs, trainer.max_steps):
            rank_zero_info(nothing)

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the metrics file of a run that is not resumed."""
        del pl_module
        for file in _metrics_files(trainer):
            if not file.begun:
                file.begin()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what the interrupted run had measured and not logged."""
        self.on_sanity_check_start(trainer, pl_module)
        self._log_rows(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log it too where nothing was left to train, and no training started."""
        del pl_module
        self._log_rows(trainer)

    def _log_rows(self, trainer: pl.Trainer) -> None:
        for row in self._rows:
            for logger in trainer.loggers:
                logger.log_metrics({**row["metrics"], "epoch": row["epoch"]}, step=row["step"])
                logger.save()
        self._rows = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on with the means of a phase that was interrupted between its steps."""
        del trainer
        for name, value in self._epoch_metrics.items():
            pl_module.log(name, value, on_step=False, on_epoch=True, batch_size=1)
        self._epoch_metrics = {}


def steps_done(loops: Loops) -> int | None:
    """Return the batches that the phase in work has done; ``None`` where no phase is in work."""
    # Not "current": a run that was resumed within a phase leaves one phase out of that counter, to its end.
    epochs = loops[EPOCHS]["total"]
    if epochs["ready"] == epochs["processed"]:
        return None
    return int(loops[BATCHES]["current"]["processed"])


def in_batch_end(loops: Loops) -> bool:
    """Return whether the checkpoint is written in ``on_train_batch_end``, before the step is counted and logged."""
    batches = loops[BATCHES]["current"]
    return bool(batches["completed"] < batches["processed"])


def settle(loops: Loops, *, phase_steps: int, validates: bool) -> None:
    """Put the counters of a fit loop into one of the two forms that Lightning resumes from.

    Args:
        loops: The fit loop's state, changed in place.
        phase_steps: Batches of a phase.
        validates: Whether a validation follows this phase's last batch.
    """
    steps = steps_done(loops)
    if steps is None:
        # The phase that was left out; Lightning would take it for unfinished.
        loops[EPOCHS]["current"]["ready"] = loops[EPOCHS]["current"]["processed"]
        return
    last = steps == phase_steps
    if in_batch_end(loops) and not (last and validates):  # what follows a validation is counted on the way there
        loops[STATE][STEPS] += 1
    for counter in ("total", "current"):
        batches, epochs = loops[BATCHES][counter], loops[EPOCHS][counter]
        batches["ready"] = batches["started"] = batches["completed"] = batches["processed"]
        epochs["started"] = epochs["completed"] = epochs["processed"]
        epochs["ready"] = epochs["processed"] + (1 if steps else 0)
    loops[BATCHES]["is_last_batch"] = last
    validation = loops[VALIDATION_BATCHES]
    if last and validates and not validation["total"]["completed"]:
        for counter in ("total", "current"):  # begun and not ended, which makes Lightning run it
            validation[counter] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}


def resumed_at(checkpoint: Mapping[str, Any]) -> str:
    """Say where a checkpoint stands."""
    phase = int(checkpoint["loops"]["fit_loop"][EPOCHS]["current"]["processed"])
    steps = checkpoint.get(_KEY, {}).get("steps", 0)
    return f"phase {phase}" + (f" after {steps} of its steps" if steps else "")


def nothing_left(checkpoint: Mapping[str, Any], max_epochs: int | None, max_steps: int) -> str:
    """Say that a fit has nothing to train, and how to go on; empty if it has.

    Args:
        checkpoint: What it would go on from.
        max_epochs: The Trainer's, -1 for no end.
        max_steps: The Trainer's, -1 for no end.
    """
    phase, step = int(checkpoint["loops"]["fit_loop"][EPOCHS]["current"]["processed"]), int(checkpoint["global_step"])
    if max_epochs is not None and 0 <= max_epochs <= phase:
        limit, more = f"trainer.max_epochs is {max_epochs}", f"--trainer.max_epochs {phase + 1}"
    elif 0 <= max_steps <= step:
        limit, more = f"trainer.max_steps is {max_steps}", f"--trainer.max_steps {step + 1}"
    else:
        return ""
    return (
        f"nothing is left to train: the checkpoint has finished {phase} phases in {step} optimiser steps, and {limit}; "
        f"to continue, raise it ({more} or more); to train from the start, leave out --ckpt_path"
    )


def what_is_wrong(checkpoint: Mapping[str, Any]) -> str:
    """Say which part of a checkpoint has not the form that it is saved in; empty if all have."""
    try:
        loops = checkpoint["loops"]["fit_loop"]
        (
            int(loops[EPOCHS]["current"]["processed"]),
            int(loops[BATCHES]["current"]["completed"]),
            int(loops[STATE][STEPS]),
        )
    except (KeyError, TypeError, ValueError):
        return "its counters of phases and steps cannot be read"
    kept = checkpoint.get(_KEY, {})
    forms: dict[str, type] = {"rows": list, "epoch_metrics": dict, "steps": int, "written": int, "versions": list}
    if not isinstance(kept, Mapping):
        return f"its `{_KEY}` is no mapping"
    wrong = [name for name, form in forms.items() if not isinstance(kept.get(name, form()), form)]
    wrong += ["rows" for row in kept.get("rows", []) if "rows" not in wrong and not {"step", "metrics"} <= set(row)]
    return f"its `{_KEY}` has {wrong[0]} of another form" if wrong else ""


def saved_versions(checkpoint: Mapping[str, Any]) -> list[int | str | None]:
    """Return the version of its folder that each logger of the saved run wrote to."""
    return list(checkpoint.get(_KEY, {}).get("versions", []))


def _metrics_files(trainer: pl.Trainer) -> list[MetricsFile]:
    writers = [csv_writer(logger) for logger in trainer.loggers if isinstance(logger, CSVLogger)]
    return [writer for writer in writers if isinstance(writer, MetricsFile)]
