"""Callback that mixes imitation and reinforcement, as CHORD does."""

from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer

from pact_lightning.objectives.chord import MixtureSchedule


@runtime_checkable
class Mixed(Protocol):
    """Module whose loss follows a ``mixture`` attribute."""

    mixture: float | None


class MixtureCallback(Callback):
    """Callback that sets the module's ``mixture``, CHORD's ``mu``, before every optimiser step.

    The surrogate then weighs ``1 - mu`` and the SFT term ``mu``, in place of 1 and ``model.coefficients.sft``. It logs
    ``train/mu``, and has no state: the number of the step alone determines it.

    Args:
        start: ``mu`` after the warm-up [C: 0.9].
        end: ``mu`` once it has decayed [C: 0.05]; the same as ``start`` for a constant.
        decay_steps: Optimiser steps of the decay [C: 200].
        warmup_steps: Optimiser steps in which ``mu`` rises from 0.

    Raises:
        ValueError: A value is out of its range.
    """

    metric_names = frozenset({"train/mu"})

    def __init__(self, *, start: float = 0.9, end: float = 0.05, decay_steps: int = 200, warmup_steps: int = 0) -> None:
        self.schedule = MixtureSchedule(start, end, decay_steps, warmup_steps)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the module, before the policy is loaded.

        Raises:
            TypeError: It has no ``mixture``.
        """
        del trainer
        if stage == "fit" and not isinstance(pl_module, Mixed):
            raise TypeError(f"MixtureCallback needs a module with a `mixture`; {type(pl_module).__name__} has none")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set and log the step's ``mu``."""
        del batch, batch_idx
        assert isinstance(pl_module, Mixed)
        pl_module.mixture = self.schedule.at(trainer.global_step)
        pl_module.log("train/mu", pl_module.mixture)
