"""The sampler by URL against a real HTTP server: the protocol, the swap of adapters, and what goes wrong."""

import importlib.util
import time

import pytest
import torch
from vllm_protocol_server import ProtocolServer

from pact_lightning.policy.loading import PolicyConfig, load_policy
from pact_lightning.rollout.samplers.base import LentPolicy, SamplerBackend, SamplingConfig, TurnRequest
from pact_lightning.rollout.samplers.transformers_sampler import TransformersSampler
from pact_lightning.rollout.samplers.vllm import client as vllm_client
from pact_lightning.rollout.samplers.vllm.client import VLLMServerError
from pact_lightning.rollout.samplers.vllm.server import VLLMServer

LORA = PolicyConfig(adapter="lora", dtype="float32", lora_r=4)
STOP = (1381,)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """The openai client waits half a second and more where the server names no time."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01, raising=False)


def adapted(seed=0, config=LORA):
    """The bundled policy with an adapter that matters."""
    model = load_policy(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return model


def lent(model):
    return LentPolicy(model, LORA, STOP)


def play(sampler, turns=2, rows=4, limit=6, seed=0):
    """Rolls rows out for some turns with fixed observations; per row its turns."""
    found = {row: [] for row in range(rows)}
    prompts = [[20, 21, 22 + row % 2] for row in range(rows)]  # two that rows share
    sampler.submit([TurnRequest(row, prompts[row], limit, 100 * seed + row, str(row % 2)) for row in range(rows)])
    working = rows
    while working:
        for output in sampler.step():
            found[output.row].append(output)
            number = len(found[output.row])
            if number == turns:
                sampler.release(output.row)
                working -= 1
            else:
                observation = [30 + number, 31, 32]
                sampler.submit([TurnRequest(output.row, observation, limit, 100 * seed + 10 * number + output.row)])
    return found


def assert_same(one, other):
    for row, turns in one.items():
        assert [turn.ids for turn in turns] == [turn.ids for turn in other[row]]
        assert [turn.finished for turn in turns] == [turn.finished for turn in other[row]]
        for mine, theirs in zip(turns, other[row], strict=True):
            torch.testing.assert_close(torch.tensor(mine.logps), torch.tensor(theirs.logps), rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampling", [SamplingConfig(), SamplingConfig(0.7), SamplingConfig(greedy=True)], ids=str)
def test_turns_by_url_are_those_that_the_policy_samples_itself(sampling):
    """Ids, log-probabilities, seeds, several turns: the server's policy is the trainer's, adapter included."""
    model = adapted()
    direct = play(TransformersSampler(model, STOP, sampling))
    with ProtocolServer() as server, server.backend().lend(lent(model), sampling) as sampler:
        assert_same(play(sampler), direct)


def test_every_run_of_rollouts_has_a_name_and_a_folder_of_its_own_and_leaves_neither():
    model = adapted()
    with ProtocolServer() as server:
        backend = server.backend()
        first = direct = None
        for seed in (0, 1):
            changed = adapted(seed)
            model.load_state_dict(changed.state_dict())
            direct = play(TransformersSampler(model, STOP, SamplingConfig()))
            with backend.lend(lent(model), SamplingConfig()) as sampler:
                assert len(server.loaded) == 1
                by_url = play(sampler)
            assert_same(by_url, direct)
            first = first or direct
        assert {name: [turn.ids for turn in turns] for name, turns in first.items()} != {
            name: [turn.ids for turn in turns] for name, turns in direct.items()
        }, "the second adapter samples otherwise"
        assert server.loaded == {}
        (one, its_folder), (other, other_folder) = server.ever_loaded
        assert one != other
        assert its_folder != other_folder
        assert not its_folder.exists()
        assert not other_folder.exists()


def test_an_adapter_folder_of_ones_own_is_used_and_left_empty(tmp_path):
    with ProtocolServer() as server:
        with server.backend(adapter_folder=str(tmp_path)).lend(lent(adapted()), SamplingConfig()):
            (folder,) = tmp_path.iterdir()
            assert (folder / "adapter_model.safetensors").is_file()
        assert server.ever_loaded[0][1] == folder
    assert list(tmp_path.iterdir()) == []


def test_the_distribution_is_not_left_to_the_models_generation_config():
    with ProtocolServer() as server:
        with server.backend().lend(lent(adapted()), SamplingConfig()) as sampler:
            play(sampler, turns=1, rows=1)
        (body,) = [body for path, body in server.bodies if path == "/v1/completions"]
    neutral = {"top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1, "temperature": 1, "ignore_eos": True}
    assert {name: body[name] for name in neutral} == neutral
    assert body["stop_token_ids"] == list(STOP)
    assert body["prompt"] == [20, 21, 22]


def failing(first, status, path="/v1/completions"):
    """Answers the first requests of a path with an error, or breaks the connection."""

    def disturb(asked, body, number):
        return (status, {"error": {"message": "not now"}}) if asked == path and number < first else None

    return disturb


@pytest.mark.parametrize("status", [503, 429, None])
def test_what_fails_for_a_while_is_asked_again_and_told(status, caplog):
    model = adapted()
    direct = play(TransformersSampler(model, STOP, SamplingConfig()))
    with (
        ProtocolServer(disturb=failing(2, status)) as server,
        server.backend().lend(lent(model), SamplingConfig()) as sampler,
    ):
        assert_same(play(sampler), direct)
        assert len(server.prompts()) == 8 + 2
    said = [record.getMessage() for record in caplog.records if record.name == vllm_client.__name__]
    assert "failed, or did not answer; retrying up to 2 times" in said[0]
    assert "answers again" in said[-1]


def test_each_outage_is_told_once_with_its_end(caplog):
    with ProtocolServer() as server, server.backend().lend(lent(adapted()), SamplingConfig()) as sampler:
        for _ in range(2):
            done = len(server.prompts())
            server.disturb = lambda path, body, number, done=done: (
                (503, {"error": {"message": "not now"}}) if path == "/v1/completions" and number == done else None
            )
            play(sampler, turns=1, rows=1)
    said = [record.getMessage() for record in caplog.records if record.name == vllm_client.__name__]
    assert ["retrying up to" in line for line in said] == [True, False, True, False]


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (503, r"vLLM server http://127.0.0.1:\d+/v1 still failed after 2 retries \(503\): .*not now"),
        (400, r"vLLM server http://127.0.0.1:\d+/v1 refuses the request \(400\): .*not now"),
        (401, r"refuses the key \(401\); it is taken from no key"),
        (None, r"cannot be reached, in 3 tries"),
    ],
)
def test_what_fails_for_good_ends_in_one_sentence_and_leaves_no_adapter(status, sentence):
    with ProtocolServer(disturb=failing(99, status)) as server:
        with (
            pytest.raises(VLLMServerError, match=sentence),
            server.backend().lend(lent(adapted()), SamplingConfig()) as sampler,
        ):
            play(sampler)
        assert server.loaded == {}
        assert not server.ever_loaded[0][1].exists()


def test_a_load_whose_answer_was_lost_is_a_load():
    """The first try is done and its connection breaks; the second is told that the name is taken."""
    with ProtocolServer() as server:
        load = server._load

        def lost(path, body, number):
            if path == "/v1/load_lora_adapter" and number == 0:
                assert load(body)[0] == 200
                return None, ""
            return None

        server.disturb = lost
        with server.backend().lend(lent(adapted()), SamplingConfig()) as sampler:
            assert len(play(sampler)) == 4
        assert server.loaded == {}


def test_an_adapter_that_the_server_cannot_see_is_told_with_its_folder():
    def blind(path, body, number):
        return (404, {"error": {"message": "No adapter found"}}) if path == "/v1/load_lora_adapter" else None

    with (
        ProtocolServer(disturb=blind) as server,
        pytest.raises(VLLMServerError, match=r"No adapter found.*must see the folder .*pact-adapter-.* under"),
        server.backend().lend(lent(adapted()), SamplingConfig()),
    ):
        pass


def test_a_server_that_reports_other_log_probabilities_than_it_samples_by_is_told():
    """Before anything is sampled; at temperature 1 both are the same."""
    with ProtocolServer(raw_logps=True) as server:
        with server.backend().lend(lent(adapted()), SamplingConfig(1.0)) as sampler:
            play(sampler, turns=1)
        with (
            pytest.raises(VLLMServerError, match="--logprobs-mode processed_logprobs"),
            server.backend().lend(lent(adapted()), SamplingConfig(0.7)),
        ):
            pass
        assert server.loaded == {}


def test_a_turn_that_the_server_cuts_is_not_taken_for_a_turn():
    with (
        ProtocolServer(max_model_len=5) as server,
        server.backend().lend(lent(adapted()), SamplingConfig()) as sampler,
        pytest.raises(RuntimeError, match=r"after 2 of 6 tokens and 3 before it; its max_model_len"),
    ):
        play(sampler)


@pytest.mark.parametrize(
    "choices", [[], [{"token_ids": [1]}], [{"token_ids": [1, 2], "logprobs": {"token_logprobs": [-1.0]}}]], ids=str
)
def test_an_answer_without_ids_and_log_probabilities_is_told(choices):
    def other(path, body, number):
        return (200, {"choices": choices}) if path == "/v1/completions" else None

    with (
        ProtocolServer(disturb=other) as server,
        server.backend().lend(lent(adapted()), SamplingConfig()) as sampler,
        pytest.raises(VLLMServerError, match="gives no token ids with their log-probabilities"),
    ):
        play(sampler)


def test_the_check_before_loading_finds_a_server_that_serves():
    with ProtocolServer() as server:
        backend = server.backend()
        assert isinstance(backend, SamplerBackend)
        backend.check(LORA)
        assert server.ever_loaded == []


def test_the_check_tells_what_would_fail_later(tmp_path, monkeypatch):
    with ProtocolServer(loads_adapters=False) as server:
        with pytest.raises(VLLMServerError, match="cannot load adapters; start it with --enable-lora"):
            server.backend().check(LORA)
        with pytest.raises(ValueError, match="adapter is 'full'"):
            server.backend().check(PolicyConfig(adapter="full"))
        with pytest.raises(FileNotFoundError, match="create it, or change adapter_folder"):
            server.backend(adapter_folder=str(tmp_path / "none")).check(LORA)
        with pytest.raises(ValueError, match="NO_SUCH_KEY does not hold an API key"):
            server.backend(api_key_env="NO_SUCH_KEY").check(LORA)
        closed = server.url
    with pytest.raises(VLLMServerError, match=rf"{closed} cannot be reached.*is the server up"):
        VLLMServer(closed, retries=0).check(LORA)


def test_the_key_is_sent_and_stands_in_no_error(monkeypatch):
    monkeypatch.setenv("VLLM_TEST_KEY", "secret-123")
    with ProtocolServer() as server:
        server.backend(api_key_env="VLLM_TEST_KEY").check(LORA)
        assert server.headers[0]["authorization"] == "Bearer secret-123"
        server.disturb = failing(9, 403, "/v1/models")
        with pytest.raises(VLLMServerError, match=r"\(403\); it is taken from VLLM_TEST_KEY") as error:
            server.backend(api_key_env="VLLM_TEST_KEY").check(LORA)
    assert "secret-123" not in str(error.value)


def test_a_missing_package_is_told_when_the_recipe_is_read(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'pact-lightning\[vllm-server\]'"):
        VLLMServer("http://127.0.0.1:1/v1")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://here", "http://user:word@here/v1"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="base_url"):
        VLLMServer(url)


def test_a_step_waits_for_a_turn_instead_of_asking_again_and_again():
    """A slow server: one step is one turn at least, and it takes no processor time to wait for it."""

    def slow(path, body, number):
        time.sleep(0.1 if path == "/v1/completions" else 0.0)

    with (
        ProtocolServer(disturb=slow) as server,
        server.backend().lend(lent(adapted()), SamplingConfig()) as sampler,
    ):
        assert sampler.step() == []
        sampler.submit([TurnRequest(row, [20, 21], 3, row) for row in range(2)])
        steps = [sampler.step()]
        while sum(map(len, steps)) < 2:
            steps.append(sampler.step())
        assert all(steps)
