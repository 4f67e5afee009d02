"""The vLLM samplers against vLLM itself: its CPU build, in its own environment.

Name that environment's python in PACT_VLLM_PYTHON; docs/vllm.md says how it is made. What the colocated engine needs
beyond vLLM, this package's own dependencies and pytest, must be installed there too.
"""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest
from test_sampler_correction import fitted, measured
from test_vllm_server import LORA, STOP, adapted, lent
from vllm_real_play import PROMPT, difference, play_long

from pact_lightning.policy.loading import policy_source
from pact_lightning.rollout.samplers.base import SamplingConfig, TurnOutput
from pact_lightning.rollout.samplers.transformers_sampler import TransformersSampler
from pact_lightning.rollout.samplers.vllm.server import VLLMServer
from pact_lightning.rollout.samplers.vllm.turns import saved_adapter
from pact_lightning.update.optimizer import OptimizerConfig

PYTHON = os.environ.get("PACT_VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.skipif(not PYTHON, reason="needs PACT_VLLM_PYTHON, the path of a python that has vLLM"),
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

TESTS = Path(__file__).resolve().parent.parent
# Two OpenMP threads in this build share one core's work so badly that it is hundreds of times slower.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
}
CLOSE = 1e-3


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(address):
    with urllib.request.urlopen(address, timeout=5) as response:
        return response.read().decode()


def wait_until_up(process, address, log, seconds=600):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text(encoding="utf-8")[-4000:]
        try:
            get(f"{address}/health")
        except OSError:
            time.sleep(1)
        else:
            return
    raise AssertionError(f"vLLM was not up after {seconds} s:\n{log.read_text(encoding='utf-8')[-4000:]}")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A server of the bundled policy."""
    log, port = tmp_path_factory.mktemp("vllm") / "server.log", free_port()
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", policy_source(LORA)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "2048"]
    command += ["--enable-lora", "--max-lora-rank", "8", "--max-loras", "2", "--enforce-eager", "--block-size", "32"]
    command += ["--logprobs-mode", "processed_logprobs"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ENVIRONMENT
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=subprocess.STDOUT, cwd=log.parent, start_new_session=True
        )
    with ExitStack() as stack:
        stack.callback(os.killpg, process.pid, signal.SIGTERM)
        found = f"http://127.0.0.1:{port}"
        wait_until_up(process, found, log)
        yield found
    process.wait(60)


@pytest.fixture
def backend(address):
    return VLLMServer(f"{address}/v1", retries=1)


@pytest.fixture(scope="module")
def models():
    return [adapted(seed) for seed in (0, 1)]


def cache_hits(address):
    lines = get(f"{address}/metrics").splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:prefix_cache_hits_total"))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_over_several_turns_are_the_trainers(address, backend, models, temperature):
    """Later turns come out of the prefix cache; the adapter and the temperature are in what is reported."""
    backend.check(LORA)
    before = cache_hits(address)
    with backend.lend(lent(models[0]), SamplingConfig(temperature)) as sampler:
        played = play_long(sampler)
    assert cache_hits(address) - before > 4 * len(PROMPT)
    own, other = (difference(model, played, temperature) for model in models)
    print(f"server, temperature {temperature}: {own:.1e} from its adapter, {other:.1f} from the other one")
    assert own < CLOSE
    assert other > 0.5
    turns = [turn for _, turns in played for turn in turns]
    assert all(turn.finished == (turn.ids[-1] in STOP) for turn in turns)


def test_greedy_turns_are_those_of_the_policy_itself(backend, models):
    sampling = SamplingConfig(greedy=True)
    with backend.lend(lent(models[0]), sampling) as sampler:
        by_url = play_long(sampler, rows=1)
    direct = play_long(TransformersSampler(models[0], STOP, sampling), rows=1)
    assert [turn.ids for turn in by_url[0][1]] == [turn.ids for turn in direct[0][1]]


def test_a_turn_ends_at_our_stop_tokens_and_holds_the_one_that_ended_it(backend, models):
    """What the policy likes best is made a stop token: it must stand last, with its log-probability."""
    sampling = SamplingConfig(greedy=True)
    with backend.lend(lent(models[0]), sampling) as sampler:
        ((_, turns),) = play_long(sampler, turns=1, rows=1)
    third = turns[0].ids[2]
    policy = type(lent(models[0]))(models[0], LORA, (third,))
    with backend.lend(policy, sampling) as sampler:
        ((_, (turn,)),) = play_long(sampler, turns=1, rows=1)
    cut = turns[0].ids.index(third) + 1
    assert turn.finished
    assert turn.ids == turns[0].ids[:cut]
    assert turn.logps == pytest.approx(turns[0].logps[:cut], abs=CLOSE)


def test_draws_depend_on_the_seed(backend, models):
    def ids(seed):
        with backend.lend(lent(models[0]), SamplingConfig()) as sampler:
            return [[turn.ids for turn in turns] for _, turns in play_long(sampler, turns=1, rows=1, seed=seed)]

    assert ids(3) == ids(3)
    assert len({str(ids(seed)) for seed in range(4)}) == 4


def test_every_swap_takes_effect(backend, models):
    """The same prompt under one adapter, the other, and the first again, in one server."""
    for own, other in ((0, 1), (1, 0), (0, 1)):
        with backend.lend(lent(models[own]), SamplingConfig()) as sampler:
            played = play_long(sampler)
        assert difference(models[own], played) < CLOSE
        assert difference(models[other], played) > 0.5


def greedy(client, name):
    """The same long prompt, which lies in the prefix cache where vLLM takes it for the same."""
    fields = {"max_tokens": 8, "temperature": 0.0, "seed": 0, "logprobs": 0, "ignore_eos": True}
    choice = client.complete({"model": name, "prompt": PROMPT, **fields})
    turn = TurnOutput(0, choice["token_ids"], choice["logprobs"]["token_logprobs"])
    return [((turn.ids, [True] * len(turn.ids)), [turn])]


def test_the_stale_cache_trap_is_real_and_ours_does_not_fall_into_it(backend, models, tmp_path):
    """New weights under an old name and path give what belongs to neither adapter, and no error."""
    folder = tmp_path / "adapter"
    with backend._connect() as client:
        for model in models:
            model.save_pretrained(folder, save_embedding_layers=False)
            body = {"lora_name": "reused", "lora_path": str(folder), "load_inplace": True}
            client._ask("/load_lora_adapter", body)
            stale = greedy(client, "reused")
        client.unload("reused")
        between = [difference(model, stale) for model in models]
        print(f"an old name and path used again: {between[0]:.1f} and {between[1]:.1f} from the two adapters")
        assert min(between) > 0.05
        with saved_adapter(models[1]) as version:
            client.load(version)
            fresh = greedy(client, version.name)
            client.unload(version.name)
    assert difference(models[1], fresh) < CLOSE


def test_nothing_stays_in_the_server(backend, models):
    with backend._connect() as client:
        before = client.models()
        with backend.lend(lent(models[0]), SamplingConfig()):
            assert len(client.models()) == len(before) + 1
        assert client.models() == before


def test_a_phase_through_the_trainer_has_a_mismatch_of_rounding(backend, tmp_path):
    """Rollouts of the bundled tasks, their groups, and one corrected optimiser step."""
    module = fitted(backend, tmp_path)
    logged = next(logged for logged in module.logged if measured(logged))
    assert logged["mismatch/abs_difference"] < CLOSE
    assert logged["mismatch/weight_mean"] == pytest.approx(1.0, abs=CLOSE)
    assert logged["mismatch/capped"] == 0.0


def test_rollouts_ahead_of_the_update_are_of_the_weights_before_it(backend, tmp_path):
    """Three phases, the second and third on rollouts that the server made beside the update before."""
    module = fitted(backend, tmp_path, phases=3, overlap=True, optimizer=OptimizerConfig(learning_rate=1e-2))
    stale = [logged["rollout/staleness"] for logged in module.logged if "rollout/staleness" in logged]
    assert stale == [0, 1, 1]
    off = [logged["mismatch/abs_difference"] for logged in module.logged if measured(logged)]
    assert off[0] < CLOSE
    assert min(off[1:]) > 10 * CLOSE
    with backend._connect() as client:
        assert not [name for name in client.models() if name.startswith("pact-")]


def test_the_colocated_engine_samples_with_each_adapter_in_turn():
    """In a process of the other environment, through this package's own code there."""
    reports = engine_run()
    for report in reports:
        print(f"engine: {report['own']:.1e} from its adapter, {report['other']:.1f} from the other one")
    assert [report["own"] < CLOSE for report in reports] == [True] * 4
    assert [report["other"] > 0.5 for report in reports] == [True] * 4
    assert reports[0]["ids"] == reports[3]["ids"], "the same adapter and seeds"
    assert len({str(report["ids"]) for report in reports}) == 3


def test_the_engine_has_the_four_bit_base_of_the_trainer():
    """The plugin and bitsandbytes must be there too; what is left is the rounding of bfloat16."""
    if subprocess.run([PYTHON, "-c", "import vllm_bnb_plugin, bitsandbytes"], check=False).returncode:
        pytest.skip("needs vllm-bnb-plugin and bitsandbytes beside PACT_VLLM_PYTHON")
    same, unquantised = engine_run("nf4"), engine_run("16-bit")
    print(f"QLoRA: {same['own']:.1e} with vLLM's base in NF4, {unquantised['own']:.1e} with it in 16 bits")
    assert same["own"] < unquantised["own"] / 2


def engine_run(*arguments):
    """Run the engine in the other environment and return what it reports."""
    paths = {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])}
    run = subprocess.run(
        [PYTHON, str(TESTS / "vllm_engine_run.py"), *arguments],
        env=os.environ | ENVIRONMENT | paths,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])
