"""The plan's memory beside that of the real thing: the same passes on real tensors, storage by storage."""

import gc
from dataclasses import replace

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from test_own_attention import tiny

from pact_lightning.plan.lengths import Lengths, StepShape, fullest, step_packs
from pact_lightning.plan.memory import (
    BYTES_PER_LOGIT,
    NF4_BYTES,
    RolloutShape,
    ScoringConfig,
    _tensor_bytes,
    rollout_bytes,
    standing_bytes,
    update_bytes,
)
from pact_lightning.plan.meta_device import AttentionKernels, LiveBytes, run_backward
from pact_lightning.policy.flops import FlopCount
from pact_lightning.policy.loading import PolicyConfig, load_policy, policy_skeleton
from pact_lightning.policy.logprobs import token_logprobs
from pact_lightning.rollout.samplers.base import SamplingConfig, TurnRequest
from pact_lightning.rollout.samplers.own_cache import OwnCacheSampler
from pact_lightning.rollout.samplers.transformers_sampler import TransformersSampler
from pact_lightning.update.optimizer import OptimizerConfig

STEP = StepShape(prompts=2, privileged=1, rollouts=3, max_tokens=10_000, packing="shared_prefix")
LENGTHS = Lengths(prompt=60, trace=80, trajectory=50, sampled_share=0.8)


def config(adapter, **changes):
    return PolicyConfig(adapter=adapter, dtype="float32", lora_r=4, **changes)


def real_bytes(policy, planned, scoring):
    """Saved and peak bytes of the same passes on real tensors."""
    with LiveBytes("cpu") as live:
        live.hold([*policy.parameters(), *policy.buffers()])
        before = live.now
        settings = {"only": planned.masks, "chunk_size": scoring.head_chunk}
        scores = token_logprobs(policy, planned.pack, **settings, with_entropy=scoring.with_entropy)
        loss = sum(score.logp.sum() + (score.entropy.sum() if scoring.with_entropy else 0) for score in scores)
        saved = live.now - before
        loss.backward()
        return saved, live.peak - before


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_an_update_planned_without_values_takes_what_a_real_one_takes(adapter, checkpointing):
    policy = config(adapter, gradient_checkpointing=checkpointing)
    planned = fullest(step_packs(STEP, LENGTHS))
    scoring = ScoringConfig(head_chunk=64, with_entropy=True, with_reference=False)
    plan = update_bytes(policy_skeleton(policy), planned, scoring, device_type="cpu", gradients_exist=False)
    saved, peak = real_bytes(load_policy(policy), planned, scoring)
    # What lies on the CPU in both, indices and token ids, is counted for the real tensors only.
    assert plan.saved == pytest.approx(saved, rel=0.01)
    assert plan.peak == pytest.approx(peak, rel=0.01)


def test_checkpointing_the_chunk_and_the_entropy_change_the_plan_as_they_change_the_run():
    planned = fullest(step_packs(STEP, LENGTHS))

    def peak(head_chunk=64, with_entropy=False, **changes):
        scoring = ScoringConfig(head_chunk, with_entropy, with_reference=False)
        skeleton = policy_skeleton(config("lora", **changes))
        return update_bytes(skeleton, planned, scoring, device_type="cpu", gradients_exist=False)

    plain = peak()
    assert peak(gradient_checkpointing=True).saved < plain.saved / 5
    assert peak(head_chunk=320).working > plain.working
    assert peak(with_entropy=True).peak > plain.peak


def test_gradients_that_exist_already_are_not_counted_twice():
    planned = fullest(step_packs(STEP, LENGTHS))
    scoring = ScoringConfig(64, with_entropy=False, with_reference=True)
    skeleton = policy_skeleton(config("full", gradient_checkpointing=True))
    first, later = (
        update_bytes(skeleton, planned, scoring, device_type="cpu", gradients_exist=exist) for exist in (False, True)
    )
    gradients = standing_bytes(skeleton, "full", needs_reference=True).gradients
    assert first.saved == later.saved
    assert later.peak <= first.peak <= later.peak + gradients
    assert all(weight.grad is None for weight in skeleton.parameters()), "the skeleton is as it was"


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_weights_gradients_and_moments_are_those_of_the_loaded_policy(adapter):
    model = load_policy(config(adapter))
    standing = standing_bytes(policy_skeleton(config(adapter)), adapter, needs_reference=True)
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.grad = torch.zeros_like(weight)
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    moments = sum(state[name].nbytes for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    assert standing.weights + standing.adapter == sum(weight.nbytes for weight in model.parameters()) + buffers
    assert standing.gradients == sum(weight.nbytes for weight in trained)
    assert standing.optimizer == moments
    assert standing.reference == (standing.weights if adapter == "full" else 0)
    assert standing_bytes(policy_skeleton(config(adapter)), adapter, needs_reference=False).reference == 0


def test_moments_of_eight_bits_are_those_of_the_optimiser():
    model = load_policy(config("full"))
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.grad = torch.ones_like(weight)
    optimizer = OptimizerConfig(bits=8).over(trained)
    optimizer.step()
    names = ("state1", "state2", "absmax1", "absmax2")
    taken = sum(state[name].nbytes for state in optimizer.state.values() for name in names if name in state)
    skeleton = policy_skeleton(config("full"))
    assert standing_bytes(skeleton, "full", needs_reference=False, optimizer_bits=8).optimizer == taken


def test_the_two_calls_keep_more_than_the_blockwise_attention():
    planned = fullest(step_packs(STEP, LENGTHS))
    saved = {
        path: update_bytes(
            policy_skeleton(config("lora")),
            planned,
            ScoringConfig(64, with_entropy=False, with_reference=False, attention=path),
            device_type="cpu",
            gradients_exist=False,
        ).saved
        for path in ("auto", "blockwise", "two_calls")
    }
    assert saved["auto"] == saved["blockwise"] < saved["two_calls"]


def test_four_bit_weights_take_what_their_tensors_take():
    model = load_policy(config("qlora"))
    taken = 0
    for module in model.modules():
        if isinstance(module, Linear4bit):
            state = module.weight.quant_state
            parts = [module.weight.data, state.absmax, state.state2.absmax]
            taken += sum(tensor.nbytes for tensor in parts)
    assert FlopCount.of(model).base * NF4_BYTES == pytest.approx(taken, rel=0.01)
    quantised = standing_bytes(policy_skeleton(config("qlora")), "qlora", needs_reference=True)
    plain = standing_bytes(policy_skeleton(config("lora")), "lora", needs_reference=True)
    assert plain.weights - quantised.weights == pytest.approx(FlopCount.of(model).base * (4 - NF4_BYTES), rel=0.01)
    assert plain.dequantised == 0 < quantised.dequantised


def test_the_cache_is_what_the_samplers_own_rows_fill():
    policy = load_policy(config("full"))
    shape = RolloutShape(rows=3, prompt=40, turn=5, trajectory=5, prefill_tokens=80)
    planned = rollout_bytes(policy_skeleton(config("full")), shape, device_type="cpu")
    sampler = TransformersSampler(policy, [], SamplingConfig(), prefill_tokens=80)
    ids = list(range(100, 140))
    with LiveBytes("cpu") as live:
        live.hold([*policy.parameters(), *policy.buffers()])
        before = live.now
        sampler.submit([TurnRequest(row, ids, 5, seed=row) for row in range(3)])
        while not sampler.step():
            pass
        gc.collect()
        held = live.now - before
    assert planned.cache == pytest.approx(held, rel=0.01)


def test_drawing_takes_its_bytes_per_logit():
    policy = load_policy(config("full"))
    rows, vocabulary = 64, policy.get_output_embeddings().weight.shape[0]
    sampler = TransformersSampler(policy, [], SamplingConfig(), prefill_tokens=4096)
    requests = [TurnRequest(row, [100, 101], 3, seed=row, shared_prompt="x") for row in range(rows)]
    with LiveBytes("cpu") as live:
        sampler.submit(requests)
        live.mark()
        before = live.now
        sampler.step()
        taken = (live.peak - before) / (rows * vocabulary)
    # The block of words among which a token is drawn counts too: much of this vocabulary, nothing of a real one.
    assert BYTES_PER_LOGIT <= taken < BYTES_PER_LOGIT + 8


def test_live_bytes_counts_a_storage_once_and_forgets_it_when_it_is_gone():
    with LiveBytes() as live:
        tensor = torch.empty(10, 10, device="meta")
        view = tensor.t()[2:]
        assert live.now == 400
        other = tensor + 1
        assert (live.now, live.peak) == (800, 800)
        del other
        assert (live.now, live.peak) == (400, 800)
        del tensor
        assert live.now == 400, "the view keeps it"
        del view
        assert live.now == 0
        assert float(torch.ones((), device="meta")) == 0, "a tensor without values has some value"


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_no_planned_attention_writes_out_its_scores(device_type):
    query = torch.empty(2, 4, 512, 32, device="meta", dtype=torch.bfloat16, requires_grad=True)
    key = torch.empty(2, 4, 512, 32, device="meta", dtype=torch.bfloat16)
    with AttentionKernels(device_type), LiveBytes() as live:
        attend = torch.nn.functional.scaled_dot_product_attention
        out = attend(query, key, key, is_causal=True)
        masked = attend(query, key, key, attn_mask=torch.ones(512, 512, dtype=torch.bool, device="meta"))
        run_backward((out + masked).sum())
        scores = 2 * 4 * 512 * 512 * query.element_size()
        assert live.peak < scores + out.nbytes, "the scores of neither call"
    assert query.grad.shape == query.shape


@pytest.mark.parametrize(
    ("trace_layout", "tokens"), [("shared", 50 + 3 * 10 + 20 + 60), ("apart", 160), ("branch", 160)]
)
def test_prompts_that_begin_alike_are_planned_as_they_are_packed(trace_layout, tokens):
    """The 50 tokens stand there once, the other 10 of each prompt too, but where a trace has a block of its own."""
    shape = StepShape(3, 1, 2, 1000, "shared_prefix", trace_layout)
    lengths = Lengths(prompt=60, trace=20, trajectory=10, shared=50)
    (planned,) = step_packs(shape, lengths)
    # Apart, the trace's block stands behind a prompt of its own, as if the context quoted the trace at its beginning.
    assert planned.pack.tokens == tokens + (10 + 20 if trace_layout == "apart" else 0)
    with pytest.raises(ValueError, match="prompts of 60 tokens cannot begin with 61 that all of them share"):
        Lengths(prompt=60, trace=0, trajectory=10, shared=61)


@pytest.mark.parametrize("name", ["Gemma3", "Gemma4", "gpt-oss", "Qwen3.5"])
def test_windows_and_states_of_linear_attention_are_planned_as_the_sampler_keeps_them(name, tmp_path):
    """A window keeps its last tokens however long a rollout is, and linear attention a state of one size."""
    model = tiny(name).to(torch.bfloat16)
    model.config.dtype = "bfloat16"
    model.config.save_pretrained(tmp_path)
    prompt, turn, rows = 30, 20, 3
    sampler = OwnCacheSampler(model.eval(), [], SamplingConfig())
    sampler.submit([TurnRequest(row, [5] * prompt, turn, row) for row in range(rows)])
    while not sampler.step():
        pass
    real = sum(
        _tensor_bytes(vars(layer).values()) for cache in sampler._caches.by_slot.values() for layer in cache.layers
    )
    shape = RolloutShape(rows, prompt, turn, trajectory=turn - 1, prefill_tokens=1000)  # the last token is not fed
    skeleton = policy_skeleton(PolicyConfig(model=str(tmp_path), adapter="lora"))
    planned = rollout_bytes(skeleton, shape, device_type="cpu")
    assert planned.cache == real
    assert planned.prefill > 0
    longer = rollout_bytes(skeleton, replace(shape, trajectory=10 * turn), device_type="cpu").cache
    everywhere = 2 * 2 * 8 * 2 * 4 * rows  # bytes of a token: keys and values, 2 heads of 8, bfloat16, 4 layers
    assert longer - planned.cache < (9 * turn + 1) * everywhere, "not every layer keeps every token"


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_latent_attention_is_planned_with_what_transformers_keeps_of_it(device_type, tmp_path):
    model = tiny("DeepSeek V3")
    model.config.save_pretrained(tmp_path)
    skeleton = policy_skeleton(PolicyConfig(model=str(tmp_path), adapter="lora", dtype="bfloat16"))
    shape = RolloutShape(rows=2, prompt=9, turn=6, trajectory=6, prefill_tokens=80)
    planned = rollout_bytes(skeleton, shape, device_type=device_type)
    # Rows, tokens, layers, the latent and the keys with positions, bytes: not keys and values of every head.
    assert planned.cache == 2 * (9 + 6) * 4 * (8 + 4) * 2
    assert planned.prefill > 0
