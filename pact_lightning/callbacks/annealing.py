"""Callback that applies the annealing schedule."""

import math
from typing import Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer

from pact_lightning.objectives.annealing import MAX_LEVEL, AnnealingSchedule, Supervision


@runtime_checkable
class Supervised(Protocol):
    """Module whose SFT term follows a ``supervision`` attribute."""

    supervision: Supervision


class AnnealingCallback(Callback):
    """Callback that sets the module's ``supervision`` at the start of every epoch, which is one phase.

    It logs ``anneal/level`` and ``anneal/tool_call_scale``. It has no state: the epoch alone determines the
    supervision of a resumed run. Without the callback a module keeps the supervision that it was made with.

    Args:
        scale_start: ``lambda_a`` in the first epoch.
        scale_end: ``lambda_a`` at the horizon. The last epoch is one step short of it.
        level_start: Reasoning level in the first epoch, 0 to 4.
        anneal_reasoning: ``False`` holds the level at ``level_start``.
        anneal_tool_calls: ``False`` holds the scale at ``scale_start``.
        horizon: Number of epochs over which supervision fades; ``None`` for those that ``max_epochs`` and
            ``max_steps`` of the trainer allow.

    Raises:
        ValueError: A value is out of its range.
    """

    metric_names = frozenset({"anneal/level", "anneal/tool_call_scale"})

    def __init__(
        self,
        *,
        scale_start: float = 0.8,
        scale_end: float = 0.2,
        level_start: int = MAX_LEVEL,
        anneal_reasoning: bool = True,
        anneal_tool_calls: bool = True,
        horizon: int | None = None,
    ) -> None:
        if horizon is not None and horizon < 1:
            raise ValueError(f"the annealing horizon is a number of epochs and must be at least 1, not {horizon}")
        self.schedule = AnnealingSchedule(
            scale_start=scale_start,
            scale_end=scale_end,
            level_start=level_start,
            anneal_reasoning=anneal_reasoning,
            anneal_tool_calls=anneal_tool_calls,
        )
        self.horizon = horizon

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that there is a horizon, before the policy is loaded.

        Raises:
            ValueError: There is neither a horizon nor a limit on epochs or steps.
        """
        del pl_module
        if stage == "fit" and self.horizon is None and trainer.max_steps < 0 and (trainer.max_epochs or -1) < 0:
            raise ValueError(
                "AnnealingCallback needs a horizon: set its `horizon` in epochs, or trainer.max_epochs, or "
                "trainer.max_steps"
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set and log the epoch's supervision.

        Raises:
            TypeError: The module has no ``supervision``.
        """
        if not isinstance(pl_module, Supervised):
            raise TypeError(
                f"AnnealingCallback needs a module with a `supervision`; {type(pl_module).__name__} has none"
            )
        horizon = planned_epochs(trainer) if self.horizon is None else self.horizon
        assert horizon is not None  # see setup
        supervision = self.schedule.at(trainer.current_epoch, horizon)
        pl_module.supervision = supervision
        pl_module.log("anneal/level", float(supervision.level))
        pl_module.log("anneal/tool_call_scale", supervision.tool_call_scale)


def planned_epochs(trainer: Trainer) -> int | None:
    """Return the epochs that ``max_epochs`` and ``max_steps`` allow; ``None`` where neither is set.

    Args:
        trainer: A Trainer whose training has begun: only then it knows the batches of an epoch.
    """
    limits = []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        limits.append(trainer.max_epochs)
    if trainer.max_steps >= 0:
        limits.append(math.ceil(trainer.max_steps / max(int(trainer.num_training_batches), 1)))
    return max(min(limits), 1) if limits else None
