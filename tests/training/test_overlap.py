"""Rollouts made while the phase before them trains, by a real server that holds weights of its own."""

import json
import os
import signal
import threading
from collections import defaultdict
from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from hand_made import LORA, quiet_trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from soak import End
from vllm_protocol_server import ProtocolServer

from pact_lightning.credit.group import CreditConfig
from pact_lightning.environments.protocol import EnvironmentUnavailableError
from pact_lightning.policy.loading import load_policy
from pact_lightning.policy.logprobs import token_logprobs
from pact_lightning.policy.packing import Block, pack_blocks
from pact_lightning.policy.state_dict import load_trainable_state, trainable_state
from pact_lightning.resume.interruption import NAME, STOPPED
from pact_lightning.rollout.engine import RolloutLimits
from pact_lightning.rollout.samplers.base import SamplerUnavailableError
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.tasks.bundled.tools import BundledWorld
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.training.rollout_datamodule import RolloutDataModule
from pact_lightning.types.prompt import EnvironmentSpec
from pact_lightning.update.optimizer import OptimizerConfig
from pact_lightning.utils.csv_rows import read_rows

STEPS, ROLLOUTS = 2, 4
"""Of a phase."""
PATIENCE_S = 60.0
"""After which a test that waits for what must come fails."""


class Server(ProtocolServer):
    """Counts versions of the adapter and the turns that each sampled; a version may be told to wait before a turn.

    Attributes:
        turns: Turns that each version was asked for, by its number.
        log: Versions in order of their turns, and what a test writes into it.
        beside: How many versions were loaded when another one came.
        gates: By version and turn: what is waited for before the turn is sampled.
        refuses: Version whose turns are refused.
        cuts: Version whose turns are cut after two tokens.
    """

    def __init__(self):
        super().__init__(disturb=self._watch)
        self.turns, self.log, self.beside, self.gates = defaultdict(int), [], [], {}
        self.refuses = self.cuts = None
        self.came = defaultdict(threading.Event)

    def _watch(self, path, body, number):
        if path == "/v1/load_lora_adapter" and body:
            self.beside.append(len(self.loaded))
        if path != "/v1/completions":
            return None
        version = [name for name, _ in self.ever_loaded].index(body["model"])
        if version == self.refuses:
            return 400, {"error": {"message": "out of order"}}
        if version == self.cuts:
            self.max_model_len = len(body["prompt"]) + 2
        gate = self.gates.get((version, self.turns[version]))
        self.turns[version] += 1
        assert gate is None or gate.wait(PATIENCE_S)
        self.log.append(version)
        self.came[version].set()
        return None


class Watch(pl.Callback):
    """Keeps the weights that begin each phase and the groups it trains on."""

    def __init__(self):
        self.weights, self.groups = {}, defaultdict(list)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        phase = trainer.current_epoch
        if phase not in self.weights:
            self.weights[phase] = {name: w.detach().clone() for name, w in trainable_state(pl_module.model).items()}
        self.groups[phase] += batch


def by_number(trajectory, task):
    """A reward that tells rollouts apart even where they are the same."""
    return [float(trajectory.sample)] * len(trajectory.turns)


def fit(folder, server, *callbacks, phases=3, overlap=True, resume=None, validation=False, train=None, **given):
    """One start of a run: two steps a phase, one rollout at a time."""
    module = PACTModule(
        policy=LORA,
        optimizer=OptimizerConfig(learning_rate=1e-2),
        anchor_probability=0.5,
        sampler=server.backend(retries=0),
    )
    given = {"credit": CreditConfig(reward=f"{__name__}.by_number")} | given
    data = RolloutDataModule(
        train=train or BundledTasks("train", 5),
        validation=BundledTasks("validation", 2) if validation else None,
        prompts_per_phase=2,
        prompts_per_step=1,
        rollouts_per_prompt=2,
        overlap=overlap,
        max_prompt_tokens=600,
        limits=RolloutLimits(max_turns=2, max_new_tokens_per_turn=6, max_trajectory_tokens=200, rows=1, admit_every=1),
        **given,
    )
    trainer = quiet_trainer(
        max_epochs=phases,
        logger=CSVLogger(folder, "run", "version_0"),
        enable_checkpointing=True,
        callbacks=[
            *callbacks,
            ModelCheckpoint(folder / "checkpoints", save_last=True, save_on_train_epoch_end=True),
        ],
        num_sanity_val_steps=0,
    )
    trainer.fit(module, data, ckpt_path=resume)
    assert data.phases is None, "the module and the Trainer are let go"
    assert not working(), "the end of a run leaves no thread behind"
    assert server.loaded == {}
    return trainer


def working():
    return [thread.name for thread in threading.enumerate() if thread.name == "rollouts ahead"]


def rows_of(folder):
    return read_rows(folder / "run" / "version_0" / "metrics.csv")


def staleness(folder):
    return [float(row["rollout/staleness"]) for row in rows_of(folder) if row.get("rollout/staleness")]


def differences(groups, weights):
    """Per rollout: how far the sampler's log-probabilities are from the trainer's under these weights, at most."""
    model = load_policy(LORA).eval()
    load_trainable_state(model, weights)
    found = []
    for group in groups:
        for sample, trajectory in enumerate(group.trajectories):
            (pack,) = pack_blocks([Block(list(trajectory.prompt_ids), [trajectory.ids().tolist()])], 4096)
            with torch.no_grad():
                (score,) = token_logprobs(model, pack)
            sampled = torch.tensor(trajectory.sampled_logps)
            found.append(float((score.logp[group.policy_mask(sample)] - sampled).abs().max()))
    return found


class Alternating(pl.Callback):
    """Lets the server sample the next phase only after this one's first step has begun, and waits until it has."""

    def __init__(self, server, phases):
        self.server = server
        self.begun = {phase: threading.Event() for phase in range(phases)}
        server.gates |= {(phase + 1, 0): event for phase, event in self.begun.items()}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.server.log.append(f"step {trainer.current_epoch}.{batch_idx}")
        self.begun[trainer.current_epoch].set()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        following = trainer.current_epoch + 1
        assert following == trainer.max_epochs or self.server.came[following].wait(PATIENCE_S)
        self.server.log.append(f"done {trainer.current_epoch}.{batch_idx}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of three phases, its server and what it was seen to do."""
    folder, watch = tmp_path_factory.mktemp("undisturbed"), Watch()
    with Server() as server:
        fit(folder, server, watch, Alternating(server, 3))
        return folder, server, watch


def test_rollouts_are_those_of_the_weights_that_began_the_phase_before(undisturbed):
    _, _, watch = undisturbed
    for phase in range(3):
        groups = watch.groups[phase]
        assert sum(len(group.trajectories) for group in groups) == ROLLOUTS
        assert max(differences(groups, watch.weights[max(phase - 1, 0)])) < 1e-4
    for phase in (1, 2):
        assert max(differences(watch.groups[phase], watch.weights[phase])) > 1e-2, "the weights have moved since"


def test_the_old_log_probabilities_are_those_of_the_weights_that_begin_the_update(undisturbed):
    """The decoupled form: the ratio is taken to these weights, and their share over the sampler's is the weight."""
    _, _, watch = undisturbed
    for phase in (1, 2):
        for group in watch.groups[phase]:
            logps = group.old_logps if group.anchored else group.prompt_logps
            stale = differences([group], watch.weights[phase])
            for sample, logp in enumerate(logps):
                sampled = torch.tensor(group.trajectories[sample].sampled_logps)
                largest = float((logp[group.policy_mask(sample)] - sampled).abs().max())
                assert largest == pytest.approx(stale[sample], abs=1e-4)


class AsksForTheLoader(pl.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.datamodule.train_dataloader()


def test_a_loader_that_is_asked_for_in_every_phase_loses_nothing_that_is_made_ahead(undisturbed, tmp_path):
    with Server() as server:
        fit(tmp_path, server, AsksForTheLoader())
        assert len(server.ever_loaded) == len(undisturbed[1].ever_loaded)
    assert staleness(tmp_path) == [0, STEPS, STEPS]
    assert End.of(undisturbed[0]).differences(End.of(tmp_path)) == []


def test_the_staleness_is_logged_for_every_phase_and_shows_in_the_mismatch(undisturbed):
    folder, _, _ = undisturbed
    assert staleness(folder) == [0, STEPS, STEPS]
    logged = [row["mismatch/abs_difference"] for row in rows_of(folder) if row.get("mismatch/abs_difference")]
    first, *later = [float(value) for value in logged]
    assert len(later) == 3 * STEPS - 1
    assert first < 1e-5
    assert min(later[STEPS - 1 :]) > 1e-3


def test_the_server_samples_the_next_phase_between_the_first_and_the_last_step_of_this_one(undisturbed):
    log = undisturbed[1].log
    for phase in (0, 1):
        first, last = log.index(f"step {phase}.0"), log.index(f"done {phase}.{STEPS - 1}")
        assert first < log.index(phase + 1) < last


def test_nothing_is_sampled_for_a_phase_that_does_not_come(undisturbed):
    _, server, _ = undisturbed
    assert len(server.ever_loaded) == 3
    assert all(server.turns[version] >= ROLLOUTS for version in range(3))


def test_without_overlap_every_phase_samples_by_its_own_weights(tmp_path):
    watch = Watch()
    with Server() as server:
        trainer = fit(tmp_path, server, watch, phases=2, overlap=False)
    for phase in range(2):
        assert max(differences(watch.groups[phase], watch.weights[phase])) < 1e-4
    assert staleness(tmp_path) == [0, 0]
    assert trainer.datamodule.state_dict() == {}


def test_a_validation_waits_for_the_rollouts_that_are_made_ahead(tmp_path):
    with Server() as server:
        fit(tmp_path, server, validation=True)
    assert len(server.ever_loaded) == 6
    assert server.beside == [0] * 6, "there is never more than one version at a time"
    assert server.log == sorted(server.log), "a version has sampled all it will when the next one comes"
    assert staleness(tmp_path) == [0, STEPS, STEPS]


class InStep(pl.Callback):
    """Does something after a step, once so many rollouts of the next phase are on disk.

    The turn after those is sampled only when the rollouts have been dropped.
    """

    def __init__(self, server, phase, step, act, *, stored):
        self.at, self.act, self.stored = (phase, step), act, stored
        if stored < ROLLOUTS:
            server.gates[phase + 1, stored] = self

    def on_train_start(self, trainer, pl_module):
        self.data = trainer.datamodule

    def wait(self, timeout):
        return until(lambda: self.data.phases.ahead is not None) and self.data.phases.ahead._dropped.wait(timeout)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            path = self.data.runner.store.folder / f"phase-{self.at[0] + 1:04d}.jsonl"
            assert until(lambda: path.exists() and len(path.read_text().splitlines()) == 1 + self.stored)
            self.act(trainer)


def until(holds):
    """Waits until something holds; whether it ever did."""
    pause = threading.Event()
    return any(holds() or pause.wait(0.02) for _ in range(int(PATIENCE_S / 0.02)))


def terminate(trainer):
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    "step", [pytest.param(0, id="in the phase"), pytest.param(1, id="at its end", marks=pytest.mark.slow)]
)
def test_an_interrupted_run_takes_up_what_was_made_ahead_and_ends_as_the_undisturbed_one(undisturbed, tmp_path, step):
    """In the second phase: its own rollouts are found under the weights that sampled them, and so are the third's."""
    with Server() as server, pytest.raises(SystemExit) as stopped:
        fit(tmp_path, server, InStep(server, 1, step, terminate, stored=ROLLOUTS))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert working() == []
    assert server.loaded == {}
    with Server() as server:
        fit(tmp_path, server, resume=tmp_path / "checkpoints" / NAME)
    assert server.ever_loaded == [], "nothing is left to sample"
    assert staleness(tmp_path) == [0, STEPS, STEPS]
    assert End.of(undisturbed[0]).differences(End.of(tmp_path)) == []


def test_an_interruption_stops_the_rollouts_and_those_of_weights_that_are_gone_are_made_anew(tmp_path, caplog):
    with Server() as server, pytest.raises(SystemExit):
        fit(tmp_path, server, InStep(server, 0, 1, terminate, stored=1))
    assert working() == []
    assert server.loaded == {}
    assert server.turns[1] == 2, "it stops at the next turn"
    watch = Watch()
    with Server() as server, caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        fit(tmp_path, server, watch, resume=tmp_path / "checkpoints" / NAME)
    assert "phase-0001: 2 of 4 rollouts were made ahead before the interruption; the weights that" in caplog.text
    assert staleness(tmp_path) == [0, 0, STEPS]
    assert max(differences(watch.groups[1], watch.weights[1])) < 1e-4
    assert max(differences(watch.groups[2], watch.weights[1])) < 1e-4


def test_a_run_that_ends_early_drops_what_it_has_begun(tmp_path):
    def stop(trainer):
        trainer.should_stop = True

    with Server() as server:
        trainer = fit(tmp_path, server, InStep(server, 0, 1, stop, stored=1))
    assert trainer.global_step == STEPS
    assert server.turns[1] == 2


def test_a_server_that_fails_beside_the_update_stops_the_run_at_the_phases_end_with_all_saved(tmp_path):
    with Server() as server:
        server.refuses = 1
        with pytest.raises(SamplerUnavailableError, match=r"refuses the request \(400\): .*out of order") as caught:
            fit(tmp_path, server)
    assert server.loaded == {}
    saved = tmp_path / "checkpoints" / STOPPED
    told = f"Everything up to the last finished phase is saved as {saved}; resume with --ckpt_path last once it is back"
    assert told in str(caught.value)
    assert torch.load(saved, weights_only=True)["global_step"] == STEPS
    with Server() as server:
        trainer = fit(tmp_path, server, resume=saved)
    assert trainer.global_step == 3 * STEPS
    assert staleness(tmp_path) == [0, 0, STEPS]


class ClosesDown(BundledWorld):
    """A world that no rollout can enter any more once it is closed."""

    closed = threading.Event()

    def reset(self, task, seed):
        if self.closed.is_set():
            raise EnvironmentUnavailableError("the world has ended")
        super().reset(task, seed)


class TasksOfIt:
    def load(self):
        return [self._moved(task) for task in BundledTasks("train", 5).load()]

    def _moved(self, task):
        spec = EnvironmentSpec(f"{__name__}.ClosesDown", task.prompt.environment.init_args)
        return replace(task, prompt=replace(task.prompt, environment=spec))


def test_an_environment_that_goes_away_beside_the_update_stops_the_run_with_all_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(ClosesDown, "closed", threading.Event())
    with Server() as server:
        server.gates[1, 0] = ClosesDown.closed  # in the second phase's first turn

        class Close(pl.Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                ClosesDown.closed.set()

        with pytest.raises(
            EnvironmentUnavailableError, match=r"the world has ended. Everything up to the last finished"
        ):
            fit(tmp_path, server, Close(), train=TasksOfIt())
    assert torch.load(tmp_path / "checkpoints" / STOPPED, weights_only=True)["global_step"] == STEPS
    assert working() == []


def test_a_server_that_takes_no_weights_stops_the_run_and_the_phases_rollouts_are_kept(tmp_path):
    """It fails when the third phase's rollouts are to be started (the check at the start asks, too)."""

    def full(path, body, number):
        told = {"error": {"message": "no room"}}
        return (400, told) if path == "/v1/load_lora_adapter" and number == 3 else None

    with Server() as server:
        server.disturb = full
        with pytest.raises(SamplerUnavailableError, match="no room"):
            fit(tmp_path, server)
    with Server() as server:
        fit(tmp_path, server, resume=tmp_path / "checkpoints" / STOPPED)
    assert len(server.ever_loaded) == 1, "the third phase's"
    assert staleness(tmp_path) == [0, STEPS, STEPS]


def test_any_other_error_beside_the_update_is_raised_as_it_is(tmp_path):
    with Server() as server:
        server.cuts = 1
        with pytest.raises(RuntimeError, match="its max_model_len must be at least"):
            fit(tmp_path, server)
        assert server.loaded == {}
    assert working() == []


def test_the_rollouts_of_a_phase_are_written_once(undisturbed):
    folder, _, watch = undisturbed
    for phase in range(3):
        lines = (folder / "run" / "version_0" / "trajectories" / f"phase-{phase:04d}.jsonl").read_text().splitlines()
        assert len(lines) == ROLLOUTS
        tasks = [group.task.id for group in watch.groups[phase] for _ in group.trajectories]
        assert [json.loads(line)["task_id"] for line in lines] == tasks
