"""Where in a phase a checkpoint stands, and Lightning's progress counters put so that it goes on from exactly there.

Lightning resumes well from the end of an epoch. From the middle of one it leaves out ``on_train_epoch_start`` (which
sets the supervision), counts a step once more or once less, and skips a validation that was cut short, each depending
on the hook in which the checkpoint was written. Here a checkpoint written anywhere is put into one of two forms:

- the phase has made no step: as if the phase before had just ended;
- the phase has made ``steps`` steps: as if the epoch were about to start with so many batches done.

What a checkpoint needs beside Lightning's part, so that a run resumed from it repeats the uninterrupted one.
"""

from collections.abc import Mapping, MutableMapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info

from pact_lightning.resume.metrics_file import MetricsFile

Loops = MutableMapping[str, Any]
_EPOCHS = "epoch_progress"
_BATCHES = "epoch_loop.batch_progress"
_STATE = "epoch_loop.state_dict"
_VALIDATION = "epoch_loop.val_loop.batch_progress"


def steps_done(loops: Loops) -> int | None:
    """Batches that the phase in work has done; ``None`` where no phase is in work."""
    # Not "current": a run that was resumed within a phase leaves one phase out of that counter, to its end.
    epochs = loops[_EPOCHS]["total"]
    if epochs["ready"] == epochs["processed"]:
        return None
    return int(loops[_BATCHES]["current"]["processed"])


def in_batch_end(loops: Loops) -> bool:
    """Whether the checkpoint is written in ``on_train_batch_end``, before the step is counted and logged."""
    batches = loops[_BATCHES]["current"]
    return bool(batches["completed"] < batches["processed"])


def settle(loops: Loops, *, phase_steps: int, validates: bool) -> None:
    """Puts the counters of a fit loop in order; where no phase is in work they are, but for one.

    Args:
        loops: The fit loop's state, changed in place.
        phase_steps: Batches of a phase.
        validates: Whether a validation follows this phase's last batch.
    """
    steps = steps_done(loops)
    if steps is None:
        # The phase that was left out; Lightning would take it for unfinished.
        loops[_EPOCHS]["current"]["ready"] = loops[_EPOCHS]["current"]["processed"]
        return
    last = steps == phase_steps
    if in_batch_end(loops) and not (last and validates):  # what follows a validation is counted on the way there
        loops[_STATE]["_batches_that_stepped"] += 1
    for counter in ("total", "current"):
        batches, epochs = loops[_BATCHES][counter], loops[_EPOCHS][counter]
        batches["ready"] = batches["started"] = batches["completed"] = batches["processed"]
        epochs["started"] = epochs["completed"] = epochs["processed"]
        epochs["ready"] = epochs["processed"] + (1 if steps else 0)
    loops[_BATCHES]["is_last_batch"] = last
    validation = loops[_VALIDATION]
    if last and validates and not validation["total"]["completed"]:
        for counter in ("total", "current"):  # begun and not ended, which makes Lightning run it
            validation[counter] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}


_KEY = "exact_resume"


class ExactResume(pl.Callback):
    """Keeps counters, metrics and the metrics file of an interrupted run whole; every ``PolicyModule`` brings one.

    Lightning logs the metrics of an epoch after it has saved the checkpoint of that epoch, and those of a step after
    ``on_train_batch_end``; what a checkpoint would miss in this way is put into it and logged when it is resumed.
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._epoch_metrics: dict[str, float] = {}

    @staticmethod
    def prepare(trainer: pl.Trainer) -> None:
        """Before anything is set up: ``metrics.csv`` is not deleted, by a fit not yet, by an evaluation not at all."""
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger) and logger._experiment is None:
                logger._experiment = file = MetricsFile(logger.log_dir)
                if trainer.state.fn != "fit":
                    file.begin_behind()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Puts the counters in order and adds what Lightning has not logged yet."""
        del pl_module
        if trainer.state.fn != "fit":
            return
        loops = checkpoint["loops"]["fit_loop"]
        steps = steps_done(loops)
        log = _open_epoch(trainer)
        rows = []
        stepped = int(loops["epoch_loop.state_dict"]["_batches_that_stepped"])
        epochs = loops["epoch_progress"]["current"]
        if steps is None and epochs["completed"] < epochs["processed"]:
            rows.append({"step": stepped - 1, "epoch": trainer.current_epoch, "metrics": log})
        elif steps is not None and in_batch_end(loops) and trainer._logger_connector.should_update_logs:
            step_log = _numbers(trainer.fit_loop.epoch_loop._results.metrics(on_step=True)["log"])
            rows.append({"step": stepped, "epoch": trainer.current_epoch, "metrics": step_log})
        validates = trainer.fit_loop.epoch_loop._should_check_val_epoch() and bool(sum(trainer.num_val_batches))
        settle(loops, phase_steps=int(trainer.num_training_batches), validates=validates)
        checkpoint[_KEY] = {
            "rows": rows,
            "epoch_metrics": log if steps else {},
            "steps": steps or 0,
            "written": max((file.saved_rows() for file in _metrics_files(trainer)), default=0),
            "versions": [getattr(logger, "_version", None) for logger in trainer.loggers],
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes up what was saved, says where the run goes on, and keeps the rows that the checkpoint knows of."""
        del pl_module
        if trainer.state.fn != "fit":
            return
        kept: Mapping[str, Any] = checkpoint.get(_KEY, {})
        self._rows = list(kept.get("rows", []))
        self._epoch_metrics = dict(kept.get("epoch_metrics", {}))
        for file in _metrics_files(trainer):
            if not file.begun:
                file.begin(int(kept.get("written", 0)))
        rank_zero_info(f"resumed from {trainer.ckpt_path} at {resumed_at(checkpoint)}")

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins the metrics file of a run that is not resumed."""
        del pl_module
        for file in _metrics_files(trainer):
            if not file.begun:
                file.begin()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs what the interrupted run had measured and not logged."""
        self.on_sanity_check_start(trainer, pl_module)
        for row in self._rows:
            for logger in trainer.loggers:
                logger.log_metrics({**row["metrics"], "epoch": row["epoch"]}, step=row["step"])
                logger.save()
        self._rows = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Goes on with the means of a phase that was interrupted between its steps."""
        del trainer
        for name, value in self._epoch_metrics.items():
            pl_module.log(name, value, on_step=False, on_epoch=True, batch_size=1)
        self._epoch_metrics = {}


def resumed_at(checkpoint: Mapping[str, Any]) -> str:
    """Where a checkpoint stands, in words."""
    phase = int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
    steps = checkpoint.get(_KEY, {}).get("steps", 0)
    return f"phase {phase}" + (f" after {steps} of its steps" if steps else "")


def saved_versions(checkpoint: Mapping[str, Any]) -> list[int | str | None]:
    """Which version of its folder each logger of the saved run wrote to."""
    return list(checkpoint.get(_KEY, {}).get("versions", []))


def _metrics_files(trainer: pl.Trainer) -> list[MetricsFile]:
    writers = [logger._experiment for logger in trainer.loggers if isinstance(logger, CSVLogger)]
    return [writer for writer in writers if isinstance(writer, MetricsFile)]


def _open_epoch(trainer: pl.Trainer) -> dict[str, float]:
    """The means of the epoch in work, as they are so far."""
    return _numbers(trainer.fit_loop.epoch_loop._results.metrics(on_step=False)["log"])


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
