"""Callback that anneals supervision by the policy's own success, in the place of a fixed schedule."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from pact_lightning.callbacks.annealing import Supervised
from pact_lightning.credit.group import Group
from pact_lightning.credit.success import succeeded
from pact_lightning.objectives.annealing import MAX_LEVEL
from pact_lightning.objectives.feedback import FeedbackSchedule
from pact_lightning.utils.processes import sum_over_processes


class FeedbackCallback(Callback):
    """Callback that sets the module's ``supervision`` by the success of the phases before.

    The rule is :class:`~pact_lightning.objectives.feedback.FeedbackSchedule`. Success is the share of a phase's
    rollouts, which know the prompt alone, that solved their tasks. It logs ``anneal/level``,
    ``anneal/tool_call_scale`` and ``anneal/strength``. Checkpoints keep the strength and the counts of the present
    phase, so that a resumed run goes on as it would have. It takes the place of an AnnealingCallback.

    Args:
        target: Share of solved rollouts that is aimed at, 0 to 1.
        rate: Change of the strength, from 0 to 1, by a unit of success.
        start: Strength in the first phase.
        scale_start: ``lambda_a`` at strength 1.
        scale_end: ``lambda_a`` at strength 0.
        level_start: Reasoning level at strength 1.

    Raises:
        ValueError: A value is out of its range.
    """

    metric_names = frozenset({"anneal/level", "anneal/tool_call_scale", "anneal/strength"})

    def __init__(
        self,
        *,
        target: float = 0.5,
        rate: float = 0.5,
        start: float = 1.0,
        scale_start: float = 0.8,
        scale_end: float = 0.2,
        level_start: int = MAX_LEVEL,
    ) -> None:
        if not 0.0 <= start <= 1.0:
            raise ValueError(f"FeedbackCallback's start is a strength from 0 to 1, not {start}")
        self.schedule = FeedbackSchedule(target, rate, scale_start, scale_end, level_start)
        self.strength = start
        self.solved = 0.0
        self.rollouts = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the module and the other callbacks, before the policy is loaded.

        Raises:
            TypeError: The module has no ``supervision``.
            ValueError: There is an AnnealingCallback too.
        """
        if stage != "fit":
            return
        if not isinstance(pl_module, Supervised):
            raise TypeError(
                f"FeedbackCallback needs a module with a `supervision`; {type(pl_module).__name__} has none"
            )
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by its connector
        if any(type(callback).__name__ == "AnnealingCallback" for callback in callbacks):
            raise ValueError("FeedbackCallback and AnnealingCallback both set the supervision; keep only one of them")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set and log the phase's supervision."""
        del trainer
        assert isinstance(pl_module, Supervised)
        supervision = self.schedule.at(self.strength)
        pl_module.supervision = supervision
        pl_module.log("anneal/level", float(supervision.level))
        pl_module.log("anneal/tool_call_scale", supervision.tool_call_scale)
        pl_module.log("anneal/strength", self.strength)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: list[Group], batch_idx: int
    ) -> None:
        """Count the successes of the step's rollouts, over all processes."""
        del pl_module, outputs, batch_idx
        solved = [succeeded(trajectory, group.task) for group in batch for trajectory in group.trajectories]
        found = sum_over_processes(trainer, {"solved": float(sum(solved)), "rollouts": float(len(solved))})
        self.solved += found["solved"]
        self.rollouts += found["rollouts"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the strength follow the phase's success."""
        del trainer, pl_module
        if self.rollouts:
            self.strength = self.schedule.after(self.strength, self.solved / self.rollouts)
        self.solved = self.rollouts = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the strength, and what the present phase has counted."""
        return {"strength": self.strength, "solved": self.solved, "rollouts": self.rollouts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the run that is resumed."""
        self.strength = state_dict["strength"]
        self.solved, self.rollouts = state_dict["solved"], state_dict["rollouts"]
