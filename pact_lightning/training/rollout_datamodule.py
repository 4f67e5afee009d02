"""RolloutDataModule: prompt-only tool interactions, made anew each epoch by the policy as it is then."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn

from pact_lightning.credit.group import CreditConfig
from pact_lightning.rollout.ahead import RolledOut, SampledBy
from pact_lightning.rollout.engine import RolloutLimits, RolloutRequest
from pact_lightning.rollout.samplers.base import SamplingConfig
from pact_lightning.training.evaluation import EvaluationConfig
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.training.phase import Phase, PhaseRollouts
from pact_lightning.training.phase_prompts import PhaseConfig, PhasePrompts
from pact_lightning.training.recipe_checks import OfModel, check_phase
from pact_lightning.training.task_datamodule import TaskDataModule
from pact_lightning.types.prompt import PromptView
from pact_lightning.types.task import Task, TaskSource
from pact_lightning.update.trace_source import TraceSource


class RolloutDataModule(TaskDataModule):
    """Prompt-only rollouts as training data: one epoch is one phase, one batch the groups of one optimiser step.

    Args:
        train: Training tasks.
        validation: Tasks for validation.
        test: Tasks for ``test``.
        predict: Tasks for ``predict``.
        prompts_per_phase: Prompts that a phase rolls out [P]: 256.
        prompts_per_step: Prompts of one optimiser step [P]: 32.
        rollouts_per_prompt: Rollouts of each prompt, ``K`` [P]: 8.
        temperature: Sampling temperature of training [P]: 1.0.
        overlap: Make the rollouts of the next phase while the present one trains [D], by a sampler with weights of its
            own, such as :class:`~pact_lightning.VLLMServer`; they are one phase stale.
        resample_zero_variance: Roll out further prompts of the task order in place of those whose rollouts all earned
            the same [D], until ``prompts_per_phase`` others are there or a phase has rolled out this many times
            ``prompts_per_phase``; by default none.
        evaluation: How the tasks of validation, test and prediction are rolled out.
        limits: Where rollouts end.
        credit: How rollouts earn their advantages.
        trace_source: The trace in ``c^h``: ``expert`` [P], the controls ``mismatched``, ``shuffled`` and ``empty``, or
            a successful rollout of the same prompt, ``sibling`` and ``expert_else_sibling`` [D].
        sft_source: The trace that the SFT term imitates: ``expert``, or the one that is ``shown``.
        off_spec_share: Share of a prompt's rollouts that are sampled with its trace in their prompt. Above 0 only for
            rivals of PACT, which samples from the prompt alone [P]; it needs a ``model.trace_template`` that quotes.
        max_prompt_tokens: Tasks with a longer prompt are left out, counted and logged [P]: 7,000.
        seed: Seed of everything that is drawn.
        prefill_tokens: Tokens of one forward over prompts or observations.
    """

    def __init__(
        self,
        *,
        train: TaskSource | None = None,
        validation: TaskSource | None = None,
        test: TaskSource | None = None,
        predict: TaskSource | None = None,
        prompts_per_phase: int = 256,
        prompts_per_step: int = 32,
        rollouts_per_prompt: int = 8,
        temperature: float = 1.0,
        overlap: bool = False,
        resample_zero_variance: int | None = None,
        evaluation: EvaluationConfig = EvaluationConfig(),  # noqa: B008  # frozen
        limits: RolloutLimits = RolloutLimits(),  # noqa: B008  # frozen
        credit: CreditConfig = CreditConfig(),  # noqa: B008  # frozen
        trace_source: TraceSource = "expert",
        sft_source: Literal["expert", "shown"] = "expert",
        off_spec_share: float = 0.0,
        max_prompt_tokens: int = 7000,
        seed: int = 0,
        prefill_tokens: int = 16_384,
    ) -> None:
        super().__init__(
            validation=validation,
            test=test,
            predict=predict,
            evaluation=evaluation,
            limits=limits,
            max_prompt_tokens=max_prompt_tokens,
            seed=seed,
            prefill_tokens=prefill_tokens,
        )
        self.sources["train"] = train
        self.phase_config = PhaseConfig(
            prompts_per_phase,
            prompts_per_step,
            rollouts_per_prompt,
            SamplingConfig(temperature),
            overlap,
            credit,
            seed,
            resample_zero_variance,
            trace_source,
            sft_source,
            off_spec_share,
        )
        self.phases: PhaseRollouts | None = None
        self.made_ahead: dict[int, SampledBy] = {}  # by phase: the one that trains, and the next
        self.first_positions: dict[int, int] = {}  # in the task order, by phase, where further prompts moved them

    def setup(self, stage: str) -> None:
        """Load the tasks and check that everything fits together.

        Raises:
            ValueError: There are no training tasks, they cannot be shared evenly by the processes that train, a
                rollout could not be trained on in one forward, rollouts cannot be made beside the update, or prompts
                cannot be replaced.
        """
        if stage == "fit":
            if self.sources["train"] is None:
                raise ValueError("there are no training tasks; set data.train in the recipe")
            module = self.pact_module
            model = OfModel(module.sampler_backend, module.importance_cap, module.contexts.template)
            check_phase(self.phase_config, model, 1 if self.trainer is None else self.trainer.world_size)
            if self.phase_config.off_spec_share:
                self._warn_of_off_spec()
            needed = self.max_prompt_tokens + self.limits.max_trajectory_tokens
            if needed > self.module.max_tokens_per_forward:
                raise ValueError(
                    f"a prompt of {self.max_prompt_tokens} and a trajectory of {self.limits.max_trajectory_tokens} "
                    f"tokens need {needed} tokens in one forward, over model.max_tokens_per_forward = "
                    f"{self.module.max_tokens_per_forward}; raise that or lower data.max_prompt_tokens or "
                    "data.limits.max_trajectory_tokens"
                )
        super().setup(stage)

    def _warn_of_off_spec(self) -> None:
        share, count = self.phase_config.off_spec_rollouts, self.phase_config.rollouts_per_prompt
        rank_zero_warn(
            f"off-spec: {share} of {count} rollouts of every prompt with a trace are sampled with it in their prompt; "
            "this is no PACT, and the metrics of training rollouts are not those of the prompt alone"
        )

    @property
    def needs_reward(self) -> bool:
        """True if the environments' own ``reward()`` is what a rollout earns."""
        return self.phase_config.credit.reward == "environment"

    @property
    def pact_module(self) -> PACTModule:
        """The module in training.

        Raises:
            TypeError: It is of another kind.
        """
        module = self.module
        if not isinstance(module, PACTModule):
            raise TypeError(f"rollouts train a PACTModule, not {type(module).__name__}; use it, or a TraceDataModule")
        return module

    def train_dataloader(self) -> Phase:
        """Return the phases: each iteration rolls out anew with the present policy."""
        if self.phases is None or self.phases.trainer is not self.trainer:
            # Kept where Lightning asks for the loader again: rollouts may be made ahead.
            assert self.trainer is not None
            shown = self._with_trace
            prompts = PhasePrompts(self.phase_config, self.tasks, self.trainer, self.first_positions, shown)
            self.phases = PhaseRollouts(prompts, self.pact_module, self.runner, self.made_ahead)
        return Phase(self.phases)

    def _with_trace(self, task: Task) -> PromptView | None:
        module = self.pact_module
        return module.contexts.sampled_with(task, module.supervision.level, self.limits.max_trajectory_tokens)

    def roll_out(self, requests: Sequence[RolloutRequest], sampling: SamplingConfig, what: str) -> RolledOut:
        """Roll out the prompts of an evaluation, once the rollouts that are made ahead have ended.

        Beside them each would slow the other down, and the sampler would have to hold two adapters [D].
        """
        if self.phases is not None:
            self.phases.wait()
        return super().roll_out(requests, sampling, what)

    def state_dict(self) -> dict[str, Any]:
        """Return which weights sampled the rollouts that were made ahead, and how far the task order has been used."""
        state: dict[str, Any] = {}
        if self.made_ahead:
            state["made_ahead"] = [asdict(by) for by in self.made_ahead.values()]
        if self.first_positions:
            state["first_positions"] = dict(self.first_positions)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what a checkpoint kept."""
        self.made_ahead.clear()
        self.made_ahead.update({by["phase"]: SampledBy(**by) for by in state_dict.get("made_ahead", [])})
        self.first_positions.clear()
        self.first_positions.update(state_dict.get("first_positions", {}))

    def on_exception(self, exception: BaseException) -> None:
        """End the rollouts that are made ahead: the run stops."""
        del exception
        self._end_phases()

    def teardown(self, stage: str) -> None:
        """End the rollouts that are made ahead, where a run ends before its last phase."""
        self._end_phases()
        super().teardown(stage)

    def _end_phases(self) -> None:
        if self.phases is not None:
            self.phases.drop()
            self.phases = None  # it holds the module and the Trainer
