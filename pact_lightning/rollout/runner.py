"""Rollouts that survive an interruption: each is written as it ends, and those of an interrupted run are reused.

A reused rollout leaves its place in the batch to others, and the size of a batch decides the last bits of its rows'
probabilities. On a CPU, where a resumed run must repeat the uninterrupted one bit for bit, rollouts are therefore made
in parts that have nothing in common, and a part is reused as a whole or made again as a whole [D]. Elsewhere no two
runs agree to the last bit anyway: all rollouts are one part there, and every finished one is reused.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from pact_lightning.dialogue.renderer import Renderer
from pact_lightning.resume.checkpoint_files import is_remote
from pact_lightning.resume.interruption import Interruption, save_path
from pact_lightning.rollout.ahead import Pause, RolledOut
from pact_lightning.rollout.engine import RolloutEngine, RolloutKey, RolloutLimits, RolloutRequest, RolloutStats
from pact_lightning.rollout.samplers.base import Sampler, SamplerBackend, SamplingConfig, TimedSampler
from pact_lightning.rollout.store import RolloutStore, StoredRollouts
from pact_lightning.rollout.watch import EnvironmentWatch, UselessEnvironmentsError
from pact_lightning.types.prompt import PromptView
from pact_lightning.types.trajectory import Trajectory
from pact_lightning.utils.clock import PhaseClock
from pact_lightning.utils.errors import NotResumableError
from pact_lightning.utils.processes import rank_suffix, run_folder, sum_over_processes

_ROWS_OF_A_PART = 4
"""Batches of a part; at its end the batch runs empty, which costs time."""


class RolloutPolicy(Protocol):
    """The module whose policy rolls out; ``PolicyModule`` is one."""

    renderer: Renderer
    interruption: Interruption
    sampler_backend: SamplerBackend | None

    @property
    def device(self) -> torch.device:
        """The device of the policy."""
        ...

    @property
    def policy_name(self) -> str:
        """The name of the present weights."""
        ...

    def sampler(self, sampling: SamplingConfig, prefill_tokens: int) -> AbstractContextManager[Sampler]:
        """Lend the present policy as a sampler."""
        ...

    def whole_policy(self) -> AbstractContextManager[nn.Module]:
        """Lend the policy with all its weights, sharded or not."""
        ...


@runtime_checkable
class ShowsRollouts(Protocol):
    """Progress display that also shows rollouts as they end; ``LivePanel`` is one."""

    def show_rollout(self, trajectory: Trajectory) -> None:
        """Take a rollout that has ended."""
        ...


class MissingRolloutsError(NotResumableError):
    """Error of a policy that is gone, and not all of its rollouts are on disk.

    Attributes:
        known: Rollouts that are.
        wanted: Rollouts that are needed.
    """

    def __init__(self, message: str, known: int, wanted: int) -> None:
        super().__init__(message)
        self.known = known
        self.wanted = wanted


class RolloutTotals:
    """Totals of a phase or an evaluation, whose prompts may be rolled out in several runs.

    Args:
        what: Name of the phase or evaluation.

    Attributes:
        stats: Counts and times.
        watch: Counts of environments that failed.
    """

    def __init__(self, what: str) -> None:
        self.stats = RolloutStats()
        self.watch = EnvironmentWatch(what)


class RolloutRunner:
    """Rollouts of a module's policy, within a Trainer's run.

    Args:
        module: Whose policy rolls out.
        trainer: The Trainer.
        limits: Where rollouts end.
        prefill_tokens: Tokens of one forward over prompts or observations.
    """

    def __init__(self, module: RolloutPolicy, trainer: pl.Trainer, limits: RolloutLimits, prefill_tokens: int) -> None:
        self.module = module
        self.trainer = trainer
        self.limits = limits
        self.prefill_tokens = prefill_tokens

    @property
    def store(self) -> RolloutStore:
        """The rollouts of the phase in work on disk, beside the checkpoints."""
        folder = save_path(self.trainer)
        place = run_folder(self.trainer) if is_remote(folder) else Path(folder).parent
        return RolloutStore(place / "rollouts", rank_suffix(self.trainer))

    def run(
        self,
        requests: Sequence[RolloutRequest],
        sampling: SamplingConfig,
        what: str,
        *,
        policy: str | None = None,
        clock: PhaseClock | None = None,
        totals: RolloutTotals | None = None,
    ) -> RolledOut:
        """Roll prompts out with the present policy; within a fit, what is on disk is reused.

        Args:
            requests: The prompts.
            sampling: How tokens are drawn.
            what: Name of the phase or evaluation, for the progress display and the store.
            policy: Name of a policy that is gone: all its rollouts must be on disk.
            clock: Takes the seconds of prefill and decoding.
            totals: Totals of the phase so far, to which these are added.

        Returns:
            For every request its rollouts, and the totals.

        Raises:
            MissingRolloutsError: ``policy`` is given, and some of its rollouts are not on disk.
            EnvironmentUnavailableError: No rollout can go on, or none is of use; the state is saved before.
            SamplerUnavailableError: What samples is gone; the state is saved before.
        """
        totals = totals or RolloutTotals(what)
        with self.saved_where_stopped(what):
            # The policy around all of them: the processes may begin different numbers of samplers.
            with self.module.whole_policy():
                by = None
                if self.trainer.state.fn == "fit":
                    by = policy or self.module.policy_name
                if policy is not None:
                    self._expect_all(requests, sampling, what, policy)
                sampler = partial(self._sampler, sampling, clock)
                pause = None if by is None else self.module.interruption.between_sampler_steps
                found = self._run(requests, sampling, what, by, sampler=sampler, pause=pause, totals=totals)
            totals.watch.check_all(sum_over_processes(self.trainer, totals.watch.counts()))
        return found

    def run_beside(
        self,
        requests: Sequence[RolloutRequest],
        sampling: SamplingConfig,
        what: str,
        policy: str,
        *,
        sampler: Sampler,
        pause: Pause,
        totals: RolloutTotals,
    ) -> RolledOut:
        """Roll prompts out in another thread while the policy trains.

        Args:
            requests: The prompts.
            sampling: How tokens are drawn.
            what: Name of the phase.
            policy: Name of the weights that sample.
            sampler: A sampler with weights of its own.
            pause: Called between two steps of the sampler; it may raise to end the run.
            totals: Totals of the phase so far, to which these are added.

        Returns:
            For every request its rollouts, and the totals.
        """
        lent = nullcontext(sampler)
        found = self._run(requests, sampling, what, policy, sampler=lambda: lent, pause=pause, totals=totals)
        totals.watch.check_all(totals.watch.counts())
        return found

    def count_kept(self, requests: Sequence[RolloutRequest], sampling: SamplingConfig, what: str, policy: str) -> int:
        """Count the rollouts of a policy that are on disk; those of any other policy are removed."""
        with self._open(requests, sampling, what, policy) as stored:
            return len(stored.known)

    @contextmanager
    def saved_where_stopped(self, what: str) -> Iterator[None]:
        """Save the state where nothing can go on, as :meth:`Interruption.saved_where_stopped` does.

        Args:
            what: Name of the phase or evaluation; rollouts without a usable environment are not kept.
        """
        with self.module.interruption.saved_where_stopped(self.trainer):
            try:
                yield
            except UselessEnvironmentsError:
                self.store.forget(what)  # else a resumed run would take them from there
                raise

    def _expect_all(self, requests: Sequence[RolloutRequest], sampling: SamplingConfig, what: str, policy: str) -> None:
        wanted, known = rollouts_of(requests), self.count_kept(requests, sampling, what, policy)
        if known < wanted:
            raise MissingRolloutsError(
                f"the checkpoint was saved in the middle of {what}, but only {known} of its {wanted} "
                f"rollouts are in {self.store.folder}; use an earlier checkpoint, from the end of a phase",
                known,
                wanted,
            )

    def _run(
        self,
        requests: Sequence[RolloutRequest],
        sampling: SamplingConfig,
        what: str,
        policy: str | None,
        *,
        sampler: Callable[[], AbstractContextManager[Sampler]],
        pause: Pause | None,
        totals: RolloutTotals,
    ) -> RolledOut:
        """Run part by part, each with a sampler of its own; without the name of a policy nothing is kept."""
        engine = RolloutEngine(self.module.renderer, self.limits)
        results: list[list[Trajectory]] = []
        bar: object = self.trainer.progress_bar_callback
        watch, stats = totals.watch, totals.stats
        watch.expect(request.prompt.id for request in requests)
        with ExitStack() as stack:
            stored = None if policy is None else stack.enter_context(self._open(requests, sampling, what, policy))
            parts, reused = self._reused(requests, stored, what)
            for trajectory in reused.values():
                watch.add(trajectory)
            progress = stack.enter_context(rollout_progress(self.trainer, what, stats.rollouts + rollouts_of(requests)))
            for part in parts:
                asked = [requests[number] for number in part]
                known = {(n - part.start, sample): row for (n, sample), row in reused.items() if n in part}
                if len(known) == rollouts_of(asked):
                    results += [[known[n, sample] for sample in range(r.samples)] for n, r in enumerate(asked)]
                    for trajectory in known.values():
                        stats.add(trajectory)
                    continue

                def keep(key: RolloutKey, trajectory: Trajectory, asked: list[RolloutRequest] = asked) -> None:
                    if stored is not None:
                        stored.append(asked[key[0]], trajectory)
                    watch.ended(trajectory)
                    if isinstance(bar, ShowsRollouts):
                        bar.show_rollout(trajectory)

                with sampler() as lent:
                    made, stats = engine.run(
                        asked, lent, progress, known=known, finished=keep, pause=pause, stats=stats
                    )
                results += made
        return results, stats

    def _reused(
        self, requests: Sequence[RolloutRequest], stored: StoredRollouts | None, what: str
    ) -> tuple[list[range], dict[RolloutKey, Trajectory]]:
        """Choose the parts, and which rollouts on disk need not be made again."""
        if stored is None:
            return [range(len(requests))], {}
        exact = self.module.device.type == "cpu" and self.module.sampler_backend is None
        parts = list(parts_of(requests, self.limits.rows)) if exact else [range(len(requests))]
        reused = reusable(stored.known, parts, requests, exact=exact)
        if stored.known:
            whole = " (on a CPU whole parts of the phase alone, so that the run repeats the undisturbed one exactly)"
            rank_zero_info(
                f"{what}: the run that was interrupted finished {len(stored.known)} of {rollouts_of(requests)} "
                f"rollouts; {len(reused)} are reused{whole if len(reused) < len(stored.known) else ''}"
            )
        return parts, reused

    def _open(
        self, requests: Sequence[RolloutRequest], sampling: SamplingConfig, what: str, policy: str
    ) -> AbstractContextManager[StoredRollouts]:
        return self.store.open(what, f"{policy} {sampling} {self.limits}", requests, self._prompt_ids)

    def _prompt_ids(self, prompt: PromptView) -> list[int]:
        return self.module.renderer.prompt(prompt.messages, prompt.tools)

    @contextmanager
    def _sampler(self, sampling: SamplingConfig, clock: PhaseClock | None) -> Iterator[Sampler]:
        with self.module.sampler(sampling, self.prefill_tokens) as sampler:
            yield sampler if clock is None else TimedSampler(sampler, clock)


def rollouts_of(requests: Sequence[RolloutRequest]) -> int:
    """Count the rollouts that are asked for."""
    return sum(request.samples for request in requests)


def parts_of(requests: Sequence[RolloutRequest], rows: int) -> Iterator[range]:
    """Cut requests into parts, in order; the cuts depend on the requests alone.

    Args:
        requests: All requests.
        rows: Rollouts in work at the same time.

    Yields:
        Numbers of the requests of a part.
    """
    start, samples = 0, 0
    for number, request in enumerate(requests):
        if number > start and samples + request.samples > _ROWS_OF_A_PART * rows:
            yield range(start, number)
            start, samples = number, 0
        samples += request.samples
    yield range(start, len(requests))


def reusable(
    known: Mapping[RolloutKey, Trajectory], parts: Sequence[range], requests: Sequence[RolloutRequest], *, exact: bool
) -> dict[RolloutKey, Trajectory]:
    """Choose the rollouts on disk to reuse: all, or, where the run must be exact, those of whole parts."""
    if not exact:
        return dict(known)
    keys = [[(number, sample) for number in part for sample in range(requests[number].samples)] for part in parts]
    return {key: known[key] for part in keys if all(key in known for key in part) for key in part}


@contextmanager
def rollout_progress(trainer: pl.Trainer, what: str, total: int) -> Iterator[Callable[[RolloutStats], None] | None]:
    """Show a line of live progress in the Trainer's own display.

    Args:
        trainer: The Trainer.
        what: Name of what is rolled out.
        total: Rollouts in all.

    Yields:
        Takes what the run has made so far; ``None`` where nothing is displayed.
    """
    bar = trainer.progress_bar_callback
    display = bar.progress if isinstance(bar, RichProgressBar) and bar.is_enabled else None
    if display is None:
        yield None
        return
    line = display.add_task(f"rollouts: {what}", total=total)

    def show(stats: RolloutStats) -> None:
        speed = stats.tokens / max(stats.seconds, 1e-9)
        tools = stats.tool_seconds / max(stats.seconds, 1e-9)
        display.update(
            line,
            completed=stats.rollouts,
            description=f"rollouts: {what}, {speed:,.0f} tokens/s, {tools:.0%} in tools",
        )

    try:
        yield show
    finally:
        display.remove_task(line)
