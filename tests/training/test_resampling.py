"""Prompts whose rollouts all scored the same are replaced by others: what holds of every phase, and exact resume."""

import json
import signal
from collections import defaultdict
from dataclasses import dataclass

import lightning.pytorch as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_run import OPTIMIZER, PHASES, SHORT, AfterStep, InRollouts, fit, shallow, small_parts  # noqa: F401
from soak import End
from test_failing_environments import SomeTasks
from test_overlap import Server
from test_overlap import fit as fit_ahead

from pact_lightning.credit.group import CreditConfig
from pact_lightning.resume.interruption import NAME
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.training.resampling import check_resampling, further_prompts, replace_groups
from pact_lightning.training.rollout_datamodule import RolloutDataModule
from pact_lightning.utils.csv_rows import read_rows

WANTED, STEPS, SAMPLES = 4, 2, 2
TASKS = 7


def some_flat(trajectory, task):
    """A reward that is the same for all rollouts of three tasks out of seven, and tells those of the others apart."""
    flat = int(task.id.rpartition("-")[2]) in (2, 5, 6)
    return [0.0 if flat else float(trajectory.sample)] * len(trajectory.turns)


def none_flat(trajectory, task):
    return [float(trajectory.sample)] * len(trajectory.turns)


def all_flat(trajectory, task):
    return [0.0] * len(trajectory.turns)


def run_of(reward=some_flat, most=3, train=None):
    """Makes a run of two phases of two steps of two prompts."""

    def make():
        data = RolloutDataModule(
            train=train or BundledTasks("train", TASKS),
            prompts_per_phase=WANTED,
            prompts_per_step=WANTED // STEPS,
            rollouts_per_prompt=SAMPLES,
            resample_zero_variance=most,
            credit=CreditConfig(reward=f"{__name__}.{reward.__name__}"),
            limits=SHORT,
            temperature=1.4,
        )
        return PACTModule(policy=shallow(), optimizer=OPTIMIZER), data

    return make


class Watch(pl.Callback):
    """Keeps the groups that each phase trains on, by phase."""

    def __init__(self):
        self.groups = defaultdict(list)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.groups[trainer.current_epoch] += batch

    def positions(self, phase):
        return [group.position for group in self.groups[phase]]


def logged(folder, name):
    rows = read_rows(folder / "run" / "version_0" / "metrics.csv")
    return [float(row[name]) for row in rows if row.get(name)]


def written(folder, phase):
    path = folder / "run" / "version_0" / "trajectories" / f"phase-{phase:04d}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclass
class Seen:
    """A group, as far as a choice among groups looks at it."""

    zero_variance: bool
    single: bool
    replaced: bool = False


OUTCOMES = st.lists(st.sampled_from(["apart", "apart", "flat", "single"]), min_size=60, max_size=60)


@given(OUTCOMES, st.integers(1, 8), st.integers(2, 6))
def test_rounds_end_with_enough_groups_or_at_the_bound(outcomes, wanted, most):
    groups, count, rounds = [], wanted, 0
    while count:
        groups += [Seen(kind == "flat", kind == "single") for kind in outcomes[len(groups) : len(groups) + count]]
        rounds += 1
        apart = sum(not (group.zero_variance or group.single) for group in groups)
        assert apart <= wanted, "no group with variance is rolled out in vain"
        count = further_prompts(groups, wanted, most * wanted)
    assert rounds <= most * wanted
    assert apart == wanted or len(groups) == most * wanted
    replace_groups(groups, wanted)
    kept = [group for group in groups if not group.replaced]
    assert len(kept) == wanted
    assert all(not group.replaced for group in groups if not (group.zero_variance or group.single))
    # The bound left room for some without variance: the earliest, and whoever stays does not depend on the later ones.
    without = [group.replaced for group in groups if group.zero_variance or group.single]
    assert without == sorted(without)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder, watch = tmp_path_factory.mktemp("undisturbed"), Watch()
    fit(folder, run_of(), watch)
    return folder, watch


def test_a_phase_trains_on_prompts_with_variance_alone_and_the_next_goes_on_behind_all_that_were_drawn(undisturbed):
    folder, watch = undisturbed
    drawn = [int(count) for count in logged(folder, "rollout/prompts")]
    assert len(drawn) == PHASES
    first = 0
    for phase, count in enumerate(drawn):
        positions = watch.positions(phase)
        assert len(positions) == WANTED < count <= 3 * WANTED
        assert positions == sorted(positions)
        assert set(positions) < set(range(first, first + count))
        assert positions[-1] == first + count - 1, "the last one that was drawn was needed"
        assert not any(group.zero_variance for group in watch.groups[phase])
        first += count


def test_replaced_prompts_are_counted_with_their_tokens_and_their_rollouts_are_written(undisturbed):
    folder, watch = undisturbed
    drawn, replaced = logged(folder, "rollout/prompts"), logged(folder, "rollout/resampled")
    assert [count - WANTED for count in drawn] == replaced
    shares = logged(folder, "rollout/zero_variance")
    assert shares == pytest.approx([lost / count for lost, count in zip(replaced, drawn, strict=True)])
    assert set(logged(folder, "train/zero_variance")) == {0.0}
    for phase, count in enumerate(drawn):
        records = written(folder, phase)
        assert len(records) == SAMPLES * count
        assert sum(record.get("replaced", False) for record in records) == SAMPLES * replaced[phase]
        assert all(set(record["turn_rewards"]) == {0.0} for record in records if record.get("replaced"))
        trained = sum(len(row.sampled_logps) for group in watch.groups[phase] for row in group.trajectories)
        spent = logged(folder, "rollout/sampled_tokens")[phase]
        assert spent > trained, "those of the replaced ones are among them"
        mean, share = logged(folder, "rollout/tokens")[phase], logged(folder, "rollout/sampled_share")[phase]
        assert spent == pytest.approx(mean * share * len(records), rel=1e-4)


def test_where_all_prompts_have_variance_nothing_is_other_than_without_resampling(tmp_path):
    ends = []
    for most in (None, 2):
        fit(tmp_path / str(most), run_of(none_flat, most))
        ends.append(End.of(tmp_path / str(most)))
    assert ends[0].differences(ends[1]) == []


def test_the_bound_holds_and_the_first_prompts_stay_where_none_has_variance(tmp_path):
    watch = Watch()
    with pytest.warns(UserWarning, match="all rollouts of each prompt scored the same"):
        fit(tmp_path, run_of(all_flat, most=2), watch)
    assert logged(tmp_path, "rollout/prompts") == [2 * WANTED] * PHASES
    assert [watch.positions(phase) for phase in range(PHASES)] == [[0, 1, 2, 3], [8, 9, 10, 11]]


MOMENTS = {
    "in the first round": lambda m: InRollouts(m, "phase-0000", 3),
    "in a round of further prompts": lambda m: InRollouts(m, "phase-0000", WANTED * SAMPLES + 1),
    "after a step": lambda m: AfterStep(0, 0),
    "in further prompts of the next phase": lambda m: InRollouts(m, "phase-0001", WANTED * SAMPLES + 1),
}


@pytest.mark.parametrize(
    ("moment", "killed"),
    [
        ("in a round of further prompts", False),
        ("in further prompts of the next phase", True),
        pytest.param("after a step", False, marks=pytest.mark.slow),
        pytest.param("in the first round", False, marks=pytest.mark.slow),
        pytest.param("in further prompts of the next phase", False, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_stopped_goes_on_as_if_nothing_had_been(undisturbed, tmp_path, monkeypatch, moment, killed):
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, run_of(), MOMENTS[moment](monkeypatch))
    assert stopped.value.code == 128 + signal.SIGTERM
    monkeypatch.undo()
    if killed:  # nothing of the moment itself is left, and the checkpoint of the finished phase is the newest
        (tmp_path / "checkpoints" / NAME).unlink()
    fit(tmp_path, run_of(), ckpt_path="last")
    assert End.of(undisturbed[0]).differences(End.of(tmp_path)) == []


def test_prompts_whose_environments_do_not_start_are_replaced_too(tmp_path):
    """Further prompts that fail do not stop a run whose first ones did not."""
    watch = Watch()
    with pytest.warns(UserWarning, match="rollouts of this phase were left out because their environment failed"):
        fit(tmp_path, run_of(none_flat, train=SomeTasks(0, 2)), watch)
    for phase in range(PHASES):
        assert len(watch.groups[phase]) == WANTED
        assert not any(group.failed for group in watch.groups[phase])
    assert sum(logged(tmp_path, "rollout/resampled")) > 0


def test_rollouts_ahead_of_the_update_go_on_behind_the_further_prompts_of_the_phase_before(tmp_path):
    watch = Watch()
    reward = CreditConfig(reward=f"{__name__}.some_flat")
    with Server() as server:
        fit_ahead(tmp_path, server, watch, train=BundledTasks("train", TASKS), credit=reward, resample_zero_variance=4)
    drawn = [int(count) for count in logged(tmp_path, "rollout/prompts")]
    assert sum(drawn) > 2 * len(drawn)
    first = 0
    for phase, count in enumerate(drawn):
        assert set(watch.positions(phase)) <= set(range(first, first + count))
        assert watch.positions(phase)[-1] == first + count - 1
        first += count
    assert logged(tmp_path, "rollout/staleness") == [0, 2, 2]
    assert len(server.ever_loaded) == 3 + (drawn[0] > 2), "all rounds of a phase ahead by one version of the adapter"


@pytest.mark.parametrize(
    ("most", "samples", "processes", "told"),
    [
        (1, 8, 1, r"data.resample_zero_variance is 1: .*set it to at least 2, or to null"),
        (0, 8, 1, r"data.resample_zero_variance is 0"),
        (2, 1, 1, r"data.rollouts_per_prompt is 1; set that to at least 2"),
        (2, 8, 4, r"works with one process only, and this run has 4"),
    ],
)
def test_what_cannot_be_resampled_is_refused(most, samples, processes, told):
    with pytest.raises(ValueError, match=told):
        check_resampling(most, rollouts_per_prompt=samples, processes=processes)
    check_resampling(None, rollouts_per_prompt=samples, processes=processes)


def test_a_bound_of_one_is_refused_before_the_policy_is_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"set it to at least 2, or to null"):
        fit(tmp_path, run_of(most=1))
