"""Two processes do what one does: the same gradients and metrics, whoever holds how many packs; no one hangs."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import several_processes
import torch
from hand_made import FULL, LORA, quiet_trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import load_file
from several_processes import hand_made_steps, rollouts, supervised

from pact_lightning.export.folder import write_export
from pact_lightning.export.trained import read_trained, run_of
from pact_lightning.policy.sharding import shard_policy
from pact_lightning.resume.checkpoint_files import read_checkpoint
from pact_lightning.resume.interruption import NAME
from pact_lightning.training.trainer_checks import check_trainer
from pact_lightning.utils.processes import check_shares

ROOMY = 4000
"""Tokens of one forward in the one process: few packs, where the two processes have many."""
pytestmark = pytest.mark.timeout(several_processes.DEADLINE_S + 120)


def takes_time(name):
    named = ("rollout/seconds", "rollout/tokens_per_second", "rollout/tool_share")
    return name in named or name.startswith(("time/", "perf/"))


def run_two(python, folder, *arguments):
    """Runs the script in two processes; gives their exit statuses and the ends of what they said."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    done = subprocess.run(
        python.command(several_processes.__file__, folder, *arguments),
        env=python.environment | address | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        timeout=several_processes.DEADLINE_S + 60,
        check=True,
    )
    told = "\n".join((folder / f"out{rank}.txt").read_text()[-3000:] for rank in range(2))
    return json.loads(done.stdout.splitlines()[-1]), told


@pytest.fixture(scope="module")
def two(tmp_path_factory, warm_python):
    """What each of two processes found, and their folder."""
    folder = tmp_path_factory.mktemp("two")
    codes, told = run_two(warm_python, folder)
    assert codes == [0, 0], told
    return found_in(folder), folder


def found_in(folder):
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(
    scope="module", params=["replicas full", pytest.param("replicas lora", marks=pytest.mark.slow), "sharded"]
)
def beside(request, tmp_path_factory, warm_python):
    """Hand-made steps by two processes, and by one."""
    if request.param == "replicas lora":
        policy, folder = LORA, tmp_path_factory.mktemp("lora")
        codes, told = run_two(warm_python, folder, "lora")
        assert codes == [0, 0], told
        ranks = found_in(folder)
    else:
        policy, (ranks, _) = FULL, request.getfixturevalue("two")
    alone = hand_made_steps(None, policy, ROOMY, tmp_path_factory.mktemp("one"))
    return [found[request.param] for found in ranks], alone


def test_the_processes_hold_different_numbers_of_packs(beside):
    (first, second), one = ([found["packs"] for found in beside[0]], beside[1]["packs"])
    assert first["as many packs"] == second["as many packs"] > one["as many packs"] / 2
    assert first["fewer packs"] > second["fewer packs"] > 0
    assert first["one idle"] > second["one idle"] == 0
    assert first["all idle"] == second["all idle"] == 0


def test_gradients_are_those_of_one_process(beside):
    two, one = beside
    for found in two:
        assert found["gradients"].keys() == one["gradients"].keys()
        for step, expected in one["gradients"].items():
            assert found["gradients"][step].keys() == expected.keys(), step
            for name, gradient in expected.items():
                torch.testing.assert_close(
                    found["gradients"][step][name], gradient, rtol=1e-4, atol=1e-6, equal_nan=True, msg=f"{step} {name}"
                )
    assert one["gradients"]["all idle"] == {}
    assert all(float(gradient.abs().max()) > 1e-4 for gradient in one["gradients"]["one idle"].values())


def test_metrics_are_those_of_one_process(beside):
    two, one = beside
    for found in two:
        for step, expected in one["metrics"].items():
            assert found["metrics"][step] == pytest.approx(expected, rel=1e-5, abs=1e-6, nan_ok=True), step
    assert one["metrics"]["fewer packs"]["anchor/drawn"] == 0.5
    assert all(found["anchor/overlong"] == 0 for found in one["metrics"].values())
    assert one["metrics"]["one idle"]["train/zero_variance"] == 0.5
    assert one["metrics"]["as many packs"]["train/kl"] > 1e-4
    assert one["metrics"]["as many packs"]["train/ratio_max"] == pytest.approx(math.exp(2), rel=0.05)


def test_a_step_that_is_not_finite_in_one_process_is_skipped_by_all(beside):
    two, one = beside
    assert [found["skipped"] for found in two] == [one["skipped"]] * 2 == [1, 1]
    assert [found["steps"] for found in two] == [one["steps"]] * 2 == [5, 5]


@pytest.fixture(scope="module")
def one_with_rollouts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rollouts")
    return rollouts(None, LORA, folder), folder


def _records(folder, name):
    paths = sorted((folder / "trajectories").glob(f"{name}*.jsonl"))
    return len(paths), sorted(line for path in paths for line in path.read_text().splitlines())


@pytest.mark.parametrize("name", ["phase-0000", "validation-0000", "validation-0001", "test"])
def test_the_same_rollouts_are_made(two, one_with_rollouts, name):
    files, found = _records(two[1] / "replicas", name)
    alone, expected = _records(one_with_rollouts[1], name)
    assert (files, alone) == (2, 1)
    assert found == expected


def test_the_same_steps_are_made_of_them(two, one_with_rollouts):
    expected = [entry for entry in one_with_rollouts[0]["logged"] if entry]
    for found in two[0]:
        logged = [entry for entry in found["rollouts"]["logged"] if entry]
        assert len(logged) == len(expected)
        for entry, other in zip(logged, expected, strict=True):
            assert entry.keys() == other.keys()
            for metric in (name for name in entry if not takes_time(name)):
                assert entry[metric] == pytest.approx(other[metric], rel=1e-4, abs=1e-5), metric
        assert found["rollouts"]["history"] == [
            (phase, pytest.approx(scores)) for phase, scores in one_with_rollouts[0]["history"]
        ]


def test_results_are_of_all_tasks(two, one_with_rollouts):
    of_two, of_one = (
        json.loads((folder / "results-test.json").read_text()) for folder in (two[1] / "replicas", one_with_rollouts[1])
    )
    assert of_two["tasks"] == of_one["tasks"] == 3
    assert of_two["scores"] == pytest.approx(of_one["scores"])


def test_supervised_steps_are_those_of_one_process(two, tmp_path):
    expected = supervised(None, tmp_path)
    assert expected["sft/loss"] > 0
    for found in two[0]:
        assert found["supervised"] == pytest.approx(expected, rel=1e-4)


def test_sharded_weights_are_lent_whole_and_move(two):
    for found in two[0]:
        run = found["sharded, whole run"]
        torch.testing.assert_close(run["lent"], run["weights"], rtol=0, atol=0)
    runs = [found["sharded, whole run"]["weights"] for found in two[0]]
    torch.testing.assert_close(*runs, rtol=0, atol=0)


def test_a_sharded_run_goes_on_from_its_checkpoint(two):
    for found in two[0]:
        whole, resumed = found["sharded, whole run"], found["sharded, resumed"]
        torch.testing.assert_close(resumed["weights"], whole["weights"], rtol=0, atol=0)
        assert resumed["history"] == whole["history"]


def test_a_checkpoint_of_a_sharded_run_is_read_by_one_process_too(two, tmp_path):
    found = two[0][0]["sharded, resumed"]
    checkpoint = Path(two[1] / "sharded-twice" / "checkpoints" / "last.ckpt")
    assert checkpoint.is_file()
    module = several_processes.RecordingModule(policy=FULL)
    module.configure_model()
    module.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    torch.testing.assert_close(dict(module.state_dict()), found["weights"], rtol=0, atol=0)


def test_a_sharded_policy_is_exported_whole_by_the_run_and_from_its_checkpoint(two, tmp_path):
    folder = two[1]
    wanted = two[0][0]["sharded, whole run"]["weights"]
    checkpoint = folder / "sharded-once" / "checkpoints" / "last.ckpt"
    write_export(read_trained(checkpoint, run_of(checkpoint)), tmp_path / "later", "merged")
    for exported in (folder / "exported", tmp_path / "later"):
        torch.testing.assert_close(load_file(exported / "model.safetensors"), wanted, rtol=0, atol=0)


@pytest.fixture(scope="module")
def undisturbed_pair(tmp_path_factory, warm_python):
    folder = tmp_path_factory.mktemp("pair")
    codes, told = run_two(warm_python, folder, "-")
    assert codes == [0, 0], told
    return folder


@pytest.mark.parametrize("ranks", [pytest.param("0,1", marks=pytest.mark.slow), "1"])
def test_processes_that_are_stopped_in_a_phase_go_on_as_if_nothing_had_been(
    undisturbed_pair, tmp_path, warm_python, ranks
):
    codes, told = run_two(warm_python, tmp_path, ranks)
    assert codes == [128 + signal.SIGTERM] * 2, told
    saved = read_checkpoint(tmp_path / "checkpoints" / NAME)
    assert saved["global_step"] == 3, "two steps of the first phase, one of the second"
    codes, told = run_two(warm_python, tmp_path, "resume")
    assert codes == [0, 0], told
    for rank in range(2):
        resumed, whole = (
            torch.load(folder / f"rank{rank}.pt", weights_only=False) for folder in (tmp_path, undisturbed_pair)
        )
        torch.testing.assert_close(resumed["weights"], whole["weights"], rtol=0, atol=0)
        assert resumed["history"] == whole["history"]
        name = f"phase-0001-rank{rank}.jsonl"
        files = [folder / "trajectories" / name for folder in (tmp_path, undisturbed_pair)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_what_cannot_be_shared_is_told():
    with pytest.raises(ValueError, match=r"data.batch_size \(3\) cannot be split evenly over 2 processes"):
        check_shares("data.batch_size", 3, 2)


def test_what_cannot_be_sharded_is_told():
    with pytest.raises(ValueError, match="set its save_distributed_checkpoint to false"):
        check_trainer(quiet_trainer(strategy=ModelParallelStrategy()))
    with pytest.raises(ValueError, match=r"adapter is 'lora'; set that to 'full', or use trainer.strategy 'ddp'"):
        shard_policy(None, "lora", None)
