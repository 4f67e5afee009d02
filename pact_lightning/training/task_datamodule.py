"""What every data module with tasks shares: loading and checking them, and the rollouts of evaluation."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from pact_lightning.credit.reward import RewardError
from pact_lightning.environments.protocol import EnvironmentUnavailableError, close_environment
from pact_lightning.resume.checkpoint_files import is_remote
from pact_lightning.resume.interruption import save_path
from pact_lightning.rollout.engine import RolloutEngine, RolloutLimits, RolloutRequest, RolloutStats
from pact_lightning.rollout.reuse import parts_of, reusable, rollout_progress, rollouts_of, run_rollouts
from pact_lightning.rollout.samplers.base import Sampler, SamplerUnavailableError, SamplingConfig, TimedSampler
from pact_lightning.rollout.store import RolloutStore, StoredRollouts
from pact_lightning.rollout.watch import EnvironmentWatch, UselessEnvironmentsError, watch_over
from pact_lightning.training.evaluation import EvaluationConfig, EvaluationRollouts
from pact_lightning.training.policy_module import PolicyModule
from pact_lightning.types.prompt import EnvironmentSpec, PromptView
from pact_lightning.types.task import Task, TaskSource
from pact_lightning.types.trajectory import Trajectory
from pact_lightning.utils.clock import PhaseClock
from pact_lightning.utils.processes import sum_over_processes

Item = TypeVar("Item")


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
        """Loads the tasks that the stage needs; Lightning calls this before the policy is loaded.

        Raises:
            ValueError: The stage has no tasks.
        """
        for name in _NEEDED[stage]:
            source = self.sources.get(name)
            if source is None and stage != "fit":
                raise ValueError(f"there are no {name} tasks; set data.{name} in the recipe")
            if source is not None and name not in self.tasks:
                self.tasks[name] = self._fitting(name, source.load())

    @property
    def needs_reward(self) -> bool:
        """Whether training is rewarded by the environments themselves."""
        return False

    @property
    def module(self) -> PolicyModule:
        """The module in training."""
        assert self.trainer is not None
        module = self.trainer.lightning_module
        if not isinstance(module, PolicyModule):
            raise TypeError(f"the data module needs a PolicyModule to make rollouts with, not {type(module).__name__}")
        return module

    def _fitting(self, name: str, tasks: Sequence[Task]) -> list[Task]:
        """Tasks whose prompt fits.

        Raises:
            ValueError: There is none, none is left, two have the same id, or an environment lacks the reward that
                training needs.
        """
        if not tasks:
            raise ValueError(
                f"the source of the {name} tasks, data.{name}, gives none; look at its file and its options"
            )
        renderer = self.module.renderer
        twice = [task_id for task_id, times in Counter(task.id for task in tasks).items() if times > 1]
        if twice:
            raise ValueError(f"two {name} tasks have the id {twice[0]!r}; give every task an id of its own")
        for spec in {task.prompt.environment.class_path: task.prompt.environment for task in tasks}.values():
            # A class that cannot be made is told now, not after the policy has been loaded.
            _try(spec, needs_reward=name == "train" and self.needs_reward)
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
                f"and the shortest has {min(lengths)}; raise data.max_prompt_tokens or look at the tasks"
            )
        return kept

    def rollout(
        self,
        requests: Sequence[RolloutRequest],
        sampling: SamplingConfig,
        what: str,
        *,
        policy: str | None = None,
        clock: PhaseClock | None = None,
    ) -> tuple[list[list[Trajectory]], RolloutStats]:
        """Rolls prompts out with the current policy.

        Within a fit, every rollout is kept on disk as it ends; those that an interrupted run has left there are taken
        from it.

        Args:
            requests: What to roll out.
            sampling: How tokens are drawn.
            what: Name of the phase or validation, for the progress display and the store.
            policy: Name of a policy that is gone: all its rollouts must be on disk.
            clock: Is told what prefill and decoding took.

        Raises:
            FileNotFoundError: They are not.
            EnvironmentUnavailableError: No rollout can go on, or none is of use; the state is saved before.
            SamplerUnavailableError: What samples is gone; the state is saved before.
        """
        assert self.trainer is not None
        watch = watch_over(requests, what)
        with self.saved_where_stopped(what):
            # The policy around all of them: the processes may begin different numbers of samplers.
            with self.module.whole_policy():
                found = self._rollout(requests, sampling, what, policy=policy, clock=clock, watch=watch)
            watch.check_all(sum_over_processes(self.trainer, watch.counts()))
        return found

    def _rollout(
        self,
        requests: Sequence[RolloutRequest],
        sampling: SamplingConfig,
        what: str,
        *,
        policy: str | None,
        clock: PhaseClock | None,
        watch: EnvironmentWatch,
    ) -> tuple[list[list[Trajectory]], RolloutStats]:
        assert self.trainer is not None
        module = self.module
        sampler = partial(self._lent_sampler, sampling, clock)
        if self.trainer.state.fn != "fit":
            engine = RolloutEngine(module.renderer, self.limits)
            with sampler() as lent, rollout_progress(self.trainer, what, requests) as progress:
                return engine.run(requests, lent, progress, finished=lambda _, trajectory: watch.ended(trajectory))
        if policy is not None:
            wanted, known = rollouts_of(requests), self.kept_rollouts(requests, sampling, what, policy)
            if known < wanted:
                raise FileNotFoundError(
                    f"the checkpoint stands in the middle of {what}, but only {known} of its {wanted} "
                    f"rollouts are in {self.store.folder}; name an earlier checkpoint, one of the end of a phase"
                )
        by = policy or module.policy_name
        pause = module.interruption.between_sampler_steps
        return self.roll_out_and_keep(requests, sampling, what, by, sampler=sampler, pause=pause, watch=watch)

    def roll_out_and_keep(
        self,
        requests: Sequence[RolloutRequest],
        sampling: SamplingConfig,
        what: str,
        policy: str,
        *,
        sampler: Callable[[], AbstractContextManager[Sampler]],
        pause: Callable[[], None],
        watch: EnvironmentWatch,
    ) -> tuple[list[list[Trajectory]], RolloutStats]:
        """Makes the rollouts that the store does not know, and keeps each in it as it ends; from any thread.

        Args:
            requests: What to roll out.
            sampling: How tokens are drawn.
            what: Name of the phase or validation, for the progress display and the store.
            policy: Name of the policy that samples.
            sampler: Lends it.
            pause: Called between two steps of the sampler; it may raise in order to end the run.
            watch: Follows the rollouts as they end.
        """
        assert self.trainer is not None
        module = self.module
        with self._opened(requests, sampling, what, policy) as stored:
            exact = module.device.type == "cpu" and module.sampler_backend is None
            parts = list(parts_of(requests, self.limits.rows)) if exact else [range(len(requests))]
            reused = reusable(stored.known, parts, requests, exact=exact)
            if stored.known:
                whole = (
                    " (on a CPU whole parts of the phase alone, so that the run repeats the undisturbed one exactly)"
                )
                rank_zero_info(
                    f"{what}: the run that was interrupted finished {len(stored.known)} of {rollouts_of(requests)} "
                    f"rollouts; {len(reused)} are reused{whole if len(reused) < len(stored.known) else ''}"
                )
            for trajectory in reused.values():
                watch.add(trajectory)
            engine = RolloutEngine(module.renderer, self.limits)
            with rollout_progress(self.trainer, what, requests) as progress:
                return run_rollouts(
                    engine,
                    requests,
                    sampler,
                    progress,
                    parts=parts,
                    stored=stored,
                    reused=reused,
                    ended=watch.ended,
                    pause=pause,
                )

    def kept_rollouts(
        self, requests: Sequence[RolloutRequest], sampling: SamplingConfig, what: str, policy: str
    ) -> int:
        """How many of these rollouts by this policy are on disk; those of another policy are removed."""
        with self._opened(requests, sampling, what, policy) as stored:
            return len(stored.known)

    def _opened(
        self, requests: Sequence[RolloutRequest], sampling: SamplingConfig, what: str, policy: str
    ) -> AbstractContextManager[StoredRollouts]:
        return self.store.open(what, f"{policy} {sampling} {self.limits}", requests, self._prompt_ids)

    @contextmanager
    def saved_where_stopped(self, what: str) -> Iterator[None]:
        """Around rollouts and their rewards: where none can go on, the state is saved, and the error says how it does.

        Args:
            what: Name of the phase or validation.

        Raises:
            EnvironmentUnavailableError: No rollout can go on, or none is of use.
            SamplerUnavailableError: What samples is gone.
            RewardError: The reward fails; the rollouts are kept for a mended one.
        """
        try:
            yield
        except EnvironmentUnavailableError as error:
            if isinstance(error, UselessEnvironmentsError):
                self.store.forget(what)  # else a resumed run would take them from there
            raise EnvironmentUnavailableError(f"{error}. {self._saved('it is back')}") from error
        except SamplerUnavailableError as error:
            raise SamplerUnavailableError(f"{error}. {self._saved('it is back')}") from error
        except RewardError as error:
            raise RewardError(f"{error}. {self._saved('it is mended')}") from error

    @contextmanager
    def _lent_sampler(self, sampling: SamplingConfig, clock: PhaseClock | None) -> Iterator[Sampler]:
        with self.module.sampler(sampling, self.prefill_tokens) as sampler:
            yield sampler if clock is None else TimedSampler(sampler, clock)

    def _prompt_ids(self, prompt: PromptView) -> list[int]:
        return self.module.renderer.prompt(prompt.messages, prompt.tools)

    def _saved(self, once: str) -> str:
        """Saves the state of a fit that has to stop, and says how it goes on once something has happened."""
        assert self.trainer is not None
        if self.trainer.state.fn != "fit" or self.trainer.sanity_checking:
            return f"Nothing had to be saved; run the command again once {once}"
        if self.trainer.world_size > 1:  # saving would wait for the other processes
            return f"All finished phases are in the last checkpoint; go on with --ckpt_path last once {once}"
        what = (
            "Everything up to the last finished phase" if self.trainer.global_step else "The start of the first phase"
        )
        return f"{what} is {self.module.interruption.save_stopped(self.trainer)} once {once}"

    @property
    def store(self) -> RolloutStore:
        """Where the rollouts of the phase in work are kept: beside the checkpoints."""
        assert self.trainer is not None
        folder = save_path(self.trainer)
        place = self.run_folder() if is_remote(folder) else Path(folder).parent
        return RolloutStore(place / "rollouts", self.rank_suffix())

    def teardown(self, stage: str) -> None:
        """Removes the stored rollouts of a fit that has come to its end."""
        if stage == "fit":
            self.store.clear()

    def run_folder(self) -> Path:
        """Where this run keeps its files."""
        assert self.trainer is not None
        return Path(self.trainer.log_dir or self.trainer.default_root_dir)

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process's share, where several train together.

        Every n-th is taken, so that the shares of a batch are the batch, whatever the number of processes.
        """
        assert self.trainer is not None
        return list(items)[self.trainer.global_rank :: self.trainer.world_size]

    def rank_suffix(self) -> str:
        """Keeps the files of several processes apart."""
        assert self.trainer is not None
        return f"-rank{self.trainer.global_rank}" if self.trainer.world_size > 1 else ""

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leaves the batch where it is: packs move to the device one by one, when they are run."""
        del device, dataloader_idx
        return batch

    def val_dataloader(self) -> EvaluationRollouts | list[None]:
        """Rollouts of the validation tasks."""
        return EvaluationRollouts(self, "validation") if self.sources["validation"] else []

    def test_dataloader(self) -> EvaluationRollouts:
        """Rollouts of the test tasks."""
        return EvaluationRollouts(self, "test")

    def predict_dataloader(self) -> EvaluationRollouts:
        """Rollouts of the prediction tasks."""
        return EvaluationRollouts(self, "predict")


def _try(spec: EnvironmentSpec, *, needs_reward: bool) -> None:
    environment = spec.build()
    if needs_reward and not callable(getattr(environment, "reward", None)):
        raise ValueError(
            f"data.credit.reward is `environment`, but {spec.class_path} has no method reward(); give it one, or "
            "choose another reward"
        )
    try:
        close_environment(environment)
    except Exception as error:  # noqa: BLE001  # the user's code; rollouts go on after it as well, and count it
        rank_zero_warn(f"close() of the environment {spec.class_path} failed: {type(error).__name__}: {error}")
