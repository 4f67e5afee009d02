"""The transformers sampler: cached sampling is full recomputation, and nobody's draws depend on anybody else."""

import itertools
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from scipy.stats import chisquare
from transformers import Qwen3Config, Qwen3ForCausalLM

from pact_lightning.policy.attention.plan import ATTENTION_NAME
from pact_lightning.policy.logprobs import token_logprobs
from pact_lightning.policy.packing import Block, pack_blocks
from pact_lightning.rollout.samplers import transformers_sampler
from pact_lightning.rollout.samplers.base import SamplingConfig, TurnRequest
from pact_lightning.rollout.samplers.kv_cache import SPLIT_ABOVE, runs_of_similar_length
from pact_lightning.rollout.samplers.transformers_sampler import TransformersSampler

VOCABULARY = 24
STOP = 3


def tiny(attention=ATTENTION_NAME, dtype=torch.float64, vocabulary=VOCABULARY, **changes):
    """A small Qwen3 with logits that differ; float64, so that token equality is no matter of rounding."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": vocabulary,
        "initializer_range": 0.25,
        "use_cache": False,
    }
    torch.manual_seed(0)
    model = Qwen3ForCausalLM._from_config(Qwen3Config(**(sizes | changes)), attn_implementation=attention)
    return model.to(dtype).eval()


@pytest.fixture(scope="module")
def model():
    return tiny()


@dataclass
class Job:
    """A rollout whose observations are known beforehand: a prompt, then one observation before each later turn."""

    prompt: list[int]
    observations: list[list[int]]
    seed: int
    limit: int = 9
    shared: str = ""


@dataclass
class Result:
    ids: list[int] = field(default_factory=list)  # after the prompt
    mask: list[bool] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finished: list[bool] = field(default_factory=list)

    def turn(self, output):
        self.ids += output.ids
        self.mask += [True] * len(output.ids)
        self.logps += output.logps
        self.finished.append(output.finished)

    def observe(self, ids):
        self.ids += ids
        self.mask += [False] * len(ids)


def drive(model, jobs, rows=64, sampling=None, prefill_tokens=16_384):
    """Runs jobs as the engine does: as many at a time as there are rows, freed places refilled at once."""
    sampler = TransformersSampler(model, [STOP], sampling or SamplingConfig(), prefill_tokens)
    results = [Result() for _ in jobs]
    waiting = list(range(len(jobs)))[::-1]
    working = 0
    requests = []
    while waiting or working:
        while waiting and working < rows:
            n = waiting.pop()
            job = jobs[n]
            requests.append(TurnRequest(n, job.prompt, job.limit, derive(job, 0), job.shared))
            working += 1
        if requests:
            sampler.submit(requests)
        requests = []
        for output in sampler.step():
            job, result = jobs[output.row], results[output.row]
            result.turn(output)
            turn = len(result.finished)
            if turn > len(job.observations):
                sampler.release(output.row)
                working -= 1
                continue
            result.observe(job.observations[turn - 1])
            requests.append(TurnRequest(output.row, job.observations[turn - 1], job.limit, derive(job, turn)))
    return results


def derive(job, turn):
    return job.seed * 1000 + turn


def make_jobs(count=7, seed=0):
    """Prompts, observations and numbers of turns of all lengths; every third prompt is shared."""
    rng = np.random.default_rng(seed)

    def ids(low, high):
        return rng.integers(4, VOCABULARY, rng.integers(low, high)).tolist()

    common = ids(5, 9)
    jobs = []
    for n in range(count):
        shared = n % 3 == 0
        observations = [ids(1, 6) for _ in range(n % 4)]
        jobs.append(Job(common if shared else ids(1, 12), observations, n, 3 + n % 7, "common" if shared else ""))
    return jobs


def recomputed(model, job, result, temperature=1.0):
    (pack,) = pack_blocks([Block(job.prompt, [result.ids])], 10_000)
    with torch.no_grad():
        (scores,) = token_logprobs(model, pack, temperature=temperature)
    return scores.logp[torch.tensor(result.mask)]


def test_the_cache_grows_with_a_turn_and_not_with_what_it_might_take(model, monkeypatch):
    jobs = [replace(job, limit=23_000) for job in make_jobs()]
    usual = drive(model, jobs)
    sampler = TransformersSampler(model, [STOP], SamplingConfig())
    sampler.submit([TurnRequest(0, jobs[0].prompt, 23_000, 0)])
    assert sampler._cache.capacity <= len(jobs[0].prompt) + 1024
    monkeypatch.setattr(transformers_sampler, "ROOM_AHEAD", 2)
    assert [result.ids for result in drive(model, jobs)] == [result.ids for result in usual]
    assert max(len(result.ids) for result in usual) > 20


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("rows", [64, 2])
def test_sampled_logps_are_those_of_a_full_recomputation(model, rows, temperature):
    jobs = make_jobs()
    results = drive(model, jobs, rows, SamplingConfig(temperature))
    for job, result in zip(jobs, results, strict=True):
        assert len(result.finished) == len(job.observations) + 1
        expected = recomputed(model, job, result, temperature)
        torch.testing.assert_close(torch.tensor(result.logps), expected.float(), atol=1e-5, rtol=1e-5)


def test_float32_with_padding_and_small_prefills_agrees_as_well():
    model = tiny(dtype=torch.float32)
    jobs = make_jobs()
    for job, result in zip(jobs, drive(model, jobs, prefill_tokens=8), strict=True):
        torch.testing.assert_close(torch.tensor(result.logps), recomputed(model, job, result), atol=1e-5, rtol=1e-5)


def test_prefills_begin_with_the_longest(model):
    """A prefill for which memory does not suffice fails before shorter ones have taken time."""
    jobs, lengths = make_jobs(12), []
    embeddings = model.get_input_embeddings()
    with embeddings.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[-1])):
        sampler = TransformersSampler(model, [STOP], SamplingConfig(), prefill_tokens=16)
        sampler.submit([TurnRequest(n, job.prompt, 5, n, job.shared) for n, job in enumerate(jobs)])
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == max(len(job.prompt) for job in jobs)
    assert len(set(lengths)) > 2


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_released_and_refilled_rows_change_nothing(model, rows):
    jobs = make_jobs()
    few, all_at_once = drive(model, jobs, rows), drive(model, jobs)
    for one, other in zip(few, all_at_once, strict=True):
        assert one.ids == other.ids
        np.testing.assert_allclose(one.logps, other.logps, atol=1e-6)


def test_draws_do_not_depend_on_the_company(model):
    jobs = make_jobs()
    together = drive(model, jobs, prefill_tokens=16)
    backwards = drive(model, jobs[::-1])[::-1]
    for job, one, other in zip(jobs, together, backwards, strict=True):
        (alone,) = drive(model, [replace(job, shared="")])
        assert one.ids == other.ids == alone.ids


@pytest.mark.parametrize("split_above", [0, 4])
def test_attention_in_runs_is_attention_in_one_call(model, monkeypatch, split_above):
    jobs = make_jobs(count=12)
    whole = drive(model, jobs, 8)
    monkeypatch.setitem(SPLIT_ABOVE, "cpu", split_above)
    for one, other in zip(whole, drive(model, jobs, 8), strict=True):
        assert one.ids == other.ids
        np.testing.assert_allclose(one.logps, other.logps, atol=1e-6)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(0, 60))
def test_runs_are_the_batch_in_order_and_pad_no_more_than_they_may(lengths, split_above):
    runs = runs_of_similar_length(lengths, split_above)
    assert [row for start, stop in runs for row in range(start, stop)] == list(range(len(lengths)))
    padding = [sum(max(lengths[start:stop]) - length for length in lengths[start:stop]) for start, stop in runs]
    assert max(padding) <= split_above
    for (start, stop), (_, further) in itertools.pairwise(runs):
        assert start < stop < further
        joined = lengths[start : stop + 1]
        assert sum(max(joined) - length for length in joined) > split_above


def test_draws_depend_on_the_seed(model):
    jobs = [Job([5, 6, 7], [], seed, 9, "same") for seed in range(12)]
    assert len({tuple(result.ids) for result in drive(model, jobs)}) > 6
    again = [Job([5, 6, 7], [], 4, 9, "same") for _ in range(3)]
    assert len({tuple(result.ids) for result in drive(model, again)}) == 1


def test_greedy_is_the_argmax_of_a_plain_forward(model):
    plain = tiny(attention="eager")
    jobs = make_jobs()
    for job, result in zip(jobs, drive(model, jobs, 3, SamplingConfig(greedy=True)), strict=True):
        for position in np.flatnonzero(result.mask):
            with torch.no_grad():
                logits = plain(torch.tensor([job.prompt + result.ids[:position]])).logits[0, -1]
            assert result.ids[position] == int(logits.argmax())


def test_a_turn_ends_at_its_stop_token_or_its_limit(model):
    jobs = [Job([5, 6, 7], [[8], [9, 10]], seed, limit) for seed in range(20) for limit in (1, 2, 7)]
    ends = set()
    for job, result in zip(jobs, drive(model, jobs), strict=True):
        turns = np.split(np.array(result.ids), np.flatnonzero(np.diff(result.mask)) + 1)[::2]
        assert len(turns) == 3
        for ids, finished in zip(turns, result.finished, strict=True):
            assert 1 <= len(ids) <= job.limit
            assert STOP not in ids[:-1]
            assert finished == (ids[-1] == STOP)
            assert finished or len(ids) == job.limit
            ends.add((finished, len(ids) == job.limit))
    assert ends == {(True, True), (True, False), (False, True)}


def test_a_shared_prompt_named_like_a_row_is_told_apart(model):
    jobs = [Job([5, 6, 7], [], 0, shared="row 1"), Job([8, 9], [], 1), Job([5, 6, 7], [], 2, shared="row 1")]
    alone = [drive(model, [Job(job.prompt, [], job.seed)])[0].ids for job in jobs]
    assert [result.ids for result in drive(model, jobs)] == alone


def test_an_adapter_is_sampled_with(model):
    adapted = get_peft_model(tiny(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    adapted = adapted.double().eval()
    jobs = make_jobs()
    results = drive(adapted, jobs, 3)
    for job, result in zip(jobs, results, strict=True):
        logps = torch.tensor(result.logps)
        torch.testing.assert_close(logps, recomputed(adapted, job, result).float(), atol=1e-5, rtol=1e-5)
    base = torch.cat([recomputed(model, job, result) for job, result in zip(jobs, results, strict=True)])
    adapter = torch.cat([torch.tensor(result.logps) for result in results])
    assert (base - adapter).abs().max() > 0.1


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_first_tokens_come_as_often_as_softmax_says(temperature):
    """Chi-square over 4,000 seeds, in one batch that shares its prompt."""
    model = tiny(vocabulary=8, initializer_range=0.1)
    prompt, draws = [5, 6, 7], 4000
    jobs = [Job(prompt, [], seed, 1, "same") for seed in range(draws)]
    results = drive(model, jobs, rows=draws, sampling=SamplingConfig(temperature))
    with torch.no_grad():
        logits = tiny(attention="eager", vocabulary=8, initializer_range=0.1)(torch.tensor([prompt])).logits[0, -1]
    expected = (logits / temperature).softmax(-1).numpy() * draws
    assert expected.min() > 5
    counts = np.bincount([result.ids[0] for result in results], minlength=8)
    assert chisquare(counts, expected).pvalue > 1e-3
    assert chisquare(counts, np.full(8, draws / 8)).pvalue < 1e-6


def test_a_row_that_fills_its_slot_to_the_last_place_moves_into_a_freed_one(model):
    sampler = TransformersSampler(model, [], SamplingConfig())
    sampler.submit([TurnRequest(row, [5, 6, 7], 6, row, "same") for row in range(3)])
    ended = []
    while not ended:
        ended = sampler.step()
    sampler.submit([TurnRequest(row, [8, 9], 6, 10 + row) for row in range(3)])
    ended = []
    while not ended:
        ended = sampler.step()
    for row in range(3):
        sampler.release(row)


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        SamplingConfig(temperature=0.0)


def test_a_model_with_other_attention_is_refused():
    with pytest.raises(ValueError, match="eager"):
        TransformersSampler(tiny(attention="eager"), [STOP], SamplingConfig())
