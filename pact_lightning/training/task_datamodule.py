"""TaskDataModule: the base of the data modules, with tasks loaded and checked, and the rollouts of evaluation."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from pact_lightning.rollout.ahead import RolledOut
from pact_lightning.rollout.engine import RolloutLimits, RolloutRequest
from pact_lightning.rollout.runner import RolloutRunner
from pact_lightning.rollout.samplers.base import SamplingConfig
from pact_lightning.tasks.consistency import CloseError, EnvironmentChecks, located
from pact_lightning.tasks.jsonl import load_source
from pact_lightning.traces.tokens import split_turns
from pact_lightning.training.evaluation import EvaluationConfig, EvaluationRollouts, EvaluationSource
from pact_lightning.training.policy_module import PolicyModule
from pact_lightning.types.task import Task, TaskSource
from pact_lightning.utils.processes import share
from pact_lightning.utils.seeds import derive_seed
from pact_lightning.utils.text import counted

_ENVIRONMENTS_S = 20.0
"""Seconds in which the environments of a set of tasks are tried before training; `tasks validate` tries all."""
_NEEDED = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("predict",),
}


class TaskDataModule(pl.LightningDataModule):
    """Tasks and the rollouts of validation, test and prediction: prompt only, same engine as in training.

    Args:
        validation: Tasks of ``validate`` and of the validation within ``fit``; without them there is none.
        test: Tasks of ``test``.
        predict: Tasks of ``predict``.
        evaluation: How the tasks of these three are rolled out.
        limits: Where rollouts end.
        max_prompt_tokens: Tasks with a longer prompt are left out, counted and logged [P]: 7,000.
        seed: Seed of everything that is drawn.
        prefill_tokens: Tokens of one forward over prompts or observations.
    """

    def __init__(
        self,
        *,
        validation: TaskSource | None,
        test: TaskSource | None,
        predict: TaskSource | None,
        evaluation: EvaluationConfig,
        limits: RolloutLimits,
        max_prompt_tokens: int,
        seed: int,
        prefill_tokens: int,
    ) -> None:
        super().__init__()
        self.sources: dict[str, TaskSource | None] = {"validation": validation, "test": test, "predict": predict}
        self.evaluation = evaluation
        self.limits = limits
        self.max_prompt_tokens = max_prompt_tokens
        self.seed = seed
        self.prefill_tokens = prefill_tokens
        self.tasks: dict[str, list[Task]] = {}
        self.left_out: dict[str, int] = {}

    def setup(self, stage: str) -> None:
        """Load the tasks that the stage needs; Lightning calls this before the policy is loaded.

        Raises:
            ValueError: The stage has no tasks.
        """
        for name in _NEEDED[stage]:
            source = self.sources.get(name)
            if source is None and stage != "fit":
                raise ValueError(f"there are no {name} tasks; set data.{name} in the recipe")
            if source is not None and name not in self.tasks:
                self.tasks[name] = self._fitting(name, load_source(source))

    @property
    def needs_reward(self) -> bool:
        """True if training is rewarded by the environments themselves."""
        return False

    @property
    def module(self) -> PolicyModule:
        """The module in training."""
        assert self.trainer is not None
        module = self.trainer.lightning_module
        if not isinstance(module, PolicyModule):
            raise TypeError(f"the data module needs a PolicyModule for its rollouts, not {type(module).__name__}")
        return module

    def _fitting(self, name: str, tasks: Sequence[Task]) -> list[Task]:
        """Keep the tasks whose prompt fits.

        Raises:
            ValueError: There is none, none is left, two have the same id, or an environment lacks the reward that
                training needs.
        """
        if not tasks:
            raise ValueError(f"the source of the {name} tasks, data.{name}, is empty; check its file and its options")
        renderer = self.module.renderer
        twice = [task_id for task_id, times in Counter(task.id for task in tasks).items() if times > 1]
        if twice:
            raise ValueError(f"two {name} tasks have the id {twice[0]!r}; give every task its own id")
        # What cannot be made is told now, not after the policy has been loaded.
        checks = EnvironmentChecks(needs_reward=name == "train" and self.needs_reward, limit_s=_ENVIRONMENTS_S)
        for task in tasks:
            mistake = checks.mistake(task)
            if isinstance(mistake, CloseError):
                rank_zero_warn(mistake.problem)
            elif mistake is not None:
                raise located(task, mistake)
        if checks.left_out:
            rank_zero_info(
                f"the environments of {checks.left_out} of {len(tasks)} {name} tasks were not started before training, "
                f"which would take more than {_ENVIRONMENTS_S:g} s; `pact-lightning tasks validate` tries them all"
            )
        lengths = [len(renderer.prompt(task.prompt.messages, task.prompt.tools)) for task in tasks]
        kept = [task for task, length in zip(tasks, lengths, strict=True) if length <= self.max_prompt_tokens]
        dropped = self.left_out[name] = len(tasks) - len(kept)
        if dropped:
            rank_zero_info(
                f"{dropped} of {len(tasks)} {name} tasks have a prompt of more than {self.max_prompt_tokens} tokens "
                "(data.max_prompt_tokens) and are left out"
            )
        if not kept:
            raise ValueError(
                f"no {name} task is left: none of {len(tasks)} has a prompt within {self.max_prompt_tokens} tokens, "
                f"and the shortest has {min(lengths)}; raise data.max_prompt_tokens or check the tasks"
            )
        split = sum(split_turns(task.trace) for task in kept if task.trace is not None) if renderer.one_call else 0
        if split:
            rank_zero_info(
                f"{counted(split, 'turn')} in the traces of the {name} tasks, of several calls each, written as "
                f"several turns: the format {renderer.family!r} has one call per turn"
            )
        return kept

    @property
    def runner(self) -> RolloutRunner:
        """The runner of rollouts by the policy in training."""
        assert self.trainer is not None
        return RolloutRunner(self.module, self.trainer, self.limits, self.prefill_tokens)

    def roll_out(self, requests: Sequence[RolloutRequest], sampling: SamplingConfig, what: str) -> RolledOut:
        """Roll out the prompts of an evaluation; see :meth:`RolloutRunner.run`."""
        return self.runner.run(requests, sampling, what)

    def teardown(self, stage: str) -> None:
        """Remove the stored rollouts of a fit that has come to its end."""
        if stage == "fit":
            self.runner.store.clear()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave the batch where it is: packs move to the device one by one, when they are run."""
        del device, dataloader_idx
        return batch

    def val_dataloader(self) -> EvaluationRollouts | list[None]:
        """Return the rollouts of the validation tasks; none without such tasks."""
        return self._evaluation("validation") if self.sources["validation"] else []

    def test_dataloader(self) -> EvaluationRollouts:
        """Return the rollouts of the test tasks."""
        return self._evaluation("test")

    def predict_dataloader(self) -> EvaluationRollouts:
        """Return the rollouts of the prediction tasks."""
        return self._evaluation("predict")

    def _evaluation(self, name: str) -> EvaluationRollouts:
        how = self.evaluation

        def tasks() -> tuple[EvaluationSource, Sequence[Task]]:
            assert self.trainer is not None
            found = self.tasks[name]
            source = EvaluationSource(name, how, len(found), self.left_out.get(name, 0), self.max_prompt_tokens)
            return source, share(self.trainer, found)

        def roll_out(requests: Sequence[RolloutRequest], sampling: SamplingConfig) -> RolledOut:
            return self.roll_out(requests, sampling, self.module.evaluation_title(name))

        return EvaluationRollouts(how, tasks, derive_seed(self.seed, name), roll_out)
