"""Callback that mixes imitation and reinforcement, as CHORD does."""

from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer

from pact_lightning.callbacks.annealing import planned_epochs
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
        start: ``mu`` after the warm-up, 0 to 1 [C: 0.9].
        end: ``mu`` once it has decayed, 0 to 1 [C: 0.05]; the same as ``start`` for a constant.
        decay_steps: Optimiser steps of the decay [C: 200]; ``None`` for all that ``max_epochs`` and ``max_steps`` of
            the trainer allow, less the warm-up [D].
        warmup_steps: Optimiser steps in which ``mu`` rises from 0.

    Raises:
        ValueError: A value is out of its range.
    """

    metric_names = frozenset({"train/mu"})

    def __init__(
        self, *, start: float = 0.9, end: float = 0.05, decay_steps: int | None = 200, warmup_steps: int = 0
    ) -> None:
        self.schedule = MixtureSchedule(start, end, decay_steps or 1, warmup_steps)
        self.decays_to_the_end = decay_steps is None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the module and the length of the decay, before the policy is loaded.

        Raises:
            TypeError: The module has no ``mixture``.
            ValueError: ``mu`` is to decay to the end of a run that has none.
        """
        endless = trainer.max_steps < 0 and (trainer.max_epochs or -1) < 0
        if stage == "fit" and self.decays_to_the_end and endless:
            raise ValueError("MixtureCallback needs decay_steps, or trainer.max_epochs, or trainer.max_steps")
        if stage == "fit" and not isinstance(pl_module, Mixed):
            raise TypeError(f"MixtureCallback needs a module with a `mixture`; {type(pl_module).__name__} has none")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set and log the step's ``mu``."""
        del batch, batch_idx
        assert isinstance(pl_module, Mixed)
        if self.decays_to_the_end:
            steps = max(planned_steps(trainer) - self.schedule.warmup_steps, 1)
            self.schedule = replace(self.schedule, decay_steps=steps)
        pl_module.mixture = self.schedule.at(trainer.global_step)
        pl_module.log("train/mu", pl_module.mixture)


def planned_steps(trainer: Trainer) -> int:
    """Return the optimiser steps that ``max_epochs`` and ``max_steps`` allow, one of which is set."""
    steps = (planned_epochs(trainer) or 1) * int(trainer.num_training_batches)
    return min(steps, trainer.max_steps) if trainer.max_steps >= 0 else steps
