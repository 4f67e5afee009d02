"""Packed forwards equal separate ones run by transformers' own attention: values and all gradients."""

from copy import deepcopy

import pytest
import torch
from flex_here import let_flex_run_here
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from pact_lightning.policy.attention.blockwise import BlockwisePlan
from pact_lightning.policy.attention.choice import AttentionChoice
from pact_lightning.policy.attention.flex import FlexPlan
from pact_lightning.policy.attention.plan import SharedPrefixPlan
from pact_lightning.policy.loading import enable_gradient_checkpointing
from pact_lightning.policy.logprobs import token_logprobs
from pact_lightning.policy.packing import PREFIX, Block, pack_blocks
from pact_lightning.policy.prefix_tree import BlockLayout, spans

VOCAB = 300
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
}
# (P, R_k), with and without a read prefix: ragged, equal, R = 1, P = 1, no branches, prefixes alike and unlike.
SHAPES = [(7, (5, 3, 1), True), (1, (4,), False), (12, (), True), (6, (2, 2), False), (30, (1, 1, 1), True)]


@pytest.fixture(params=["blockwise", "two_calls", "flex"])
def path(request, monkeypatch):
    """Every path."""
    if request.param == "flex":
        let_flex_run_here(monkeypatch)
    return request.param


def build(family, attention, **overrides):
    torch.manual_seed(0)
    if family == "qwen3":
        return Qwen3ForCausalLM._from_config(Qwen3Config(**SIZES, **overrides), attn_implementation=attention).float()
    return LlamaForCausalLM._from_config(LlamaConfig(**SIZES, **overrides), attn_implementation=attention).float()


def random_blocks(shapes=SHAPES, seed=1):
    generator = torch.Generator().manual_seed(seed)

    def ids(length):
        return torch.randint(VOCAB, (length,), generator=generator)

    return [Block(ids(p), [ids(r) for r in branches], read_prefix=read) for p, branches, read in shapes]


def weights_for(block, branch, length):
    """A fixed weight for each token, so that a gradient that goes to the wrong place shows."""
    return torch.sin(torch.arange(length) + 3.0 * block + 7.0 * branch + 1)


def by_packs(model, packs, path="auto"):
    """Log-probs per (block, branch) and the gradients of their weighted sum, one backward per pack."""
    found = {}
    attention = AttentionChoice(path)
    for pack in packs:
        loss = torch.zeros(())
        for read, scores in zip(
            pack.reads, token_logprobs(model, pack, chunk_size=7, attention=attention), strict=True
        ):
            found[read.block, read.branch] = scores.logp.detach()
            loss = loss + (weights_for(read.block, read.branch, len(scores.logp)) * scores.logp).sum()
        loss.backward()
    return found, gradients(model)


def by_plain_rows(model, blocks):
    """The same from whole sequences, each alone through the plain model with dense logits."""
    found = {}
    for index, block in enumerate(blocks):
        sequences = [(PREFIX, block.prefix, 1)] if block.read_prefix else []
        sequences += [(k, torch.cat([block.prefix, b]), len(block.prefix)) for k, b in enumerate(block.branches)]
        for branch, ids, first in sequences:
            logp = model(ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
            logp = logp.gather(-1, ids[1:, None])[first - 1 :, 0]
            (weights_for(index, branch, len(logp)) * logp).sum().backward()
            found[index, branch] = logp.detach()
    return found, gradients(model)


def gradients(model):
    return {name: weight.grad for name, weight in model.named_parameters()}


def assert_same(left, right, tolerance=1e-5):
    for ours, theirs in zip(left, right, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(
                ours[name], theirs[name], rtol=1e-4, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("mode", ["shared_prefix", "rows"])
def test_a_pack_equals_plain_rows_in_values_and_gradients(family, mode, path):
    blocks = random_blocks()
    packs = pack_blocks(blocks, 1000, mode)
    assert len(packs) == 1
    expected = by_plain_rows(build(family, "sdpa"), blocks)
    assert min(grad.abs().max() for grad in expected[1].values()) > 1e-3, "the comparison must have something to see"
    assert_same(by_packs(build(family, "pact"), packs, path), expected)


def trees():
    """Prompts that share a system turn, two of them more than that; rollouts that begin alike, or are another's
    beginning; a prompt that goes on from another one's rollout; and a block that shares nothing."""
    system, tools, prompt, rollout = (block.prefix for block in random_blocks([(n, (), True) for n in (9, 4, 3, 6)]))
    other = random_blocks([(5, (3, 1), True), (4, (2,), False)], seed=2)
    first = torch.cat([system, tools, prompt])
    return [
        Block(first, [rollout, torch.cat([rollout[:4], other[0].prefix]), rollout[:3]], read_prefix=True),
        other[1],
        Block(torch.cat([system, tools, other[0].prefix]), other[0].branches),
        Block(torch.cat([system, other[0].prefix]), other[0].branches, read_prefix=True),
        Block(torch.cat([first, rollout]), other[0].branches),
    ]


@pytest.mark.parametrize("limit", [1000, 40])
def test_trees_equal_plain_rows_in_values_and_gradients(path, limit):
    packs = pack_blocks(trees(), limit)
    assert max(len(span.path) for pack in packs for span in spans(pack.layouts)) >= 2
    assert_same(by_packs(build("qwen3", "pact"), packs, path), by_plain_rows(build("qwen3", "sdpa"), trees()))


@settings(deadline=None, max_examples=12)
@given(st.data())
def test_random_trees_equal_plain_rows_in_float64(data):
    """Few different ids, so that sequences begin alike at every depth."""

    def ids(longest):
        return torch.tensor(data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=longest)))

    blocks = [
        Block(ids(8), [ids(6) for _ in range(data.draw(st.integers(1, 3)))], read_prefix=data.draw(st.booleans()))
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    packs = pack_blocks(blocks, data.draw(st.integers(8, 60)))
    expected = by_plain_rows(build("qwen3", "sdpa").double(), blocks)
    for path in ("blockwise", "two_calls"):
        ours = by_packs(build("qwen3", "pact").double(), packs, path)
        for left, right in zip(ours, expected, strict=True):
            for name in left:
                torch.testing.assert_close(left[name], right[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_multi_query_and_plain_heads(kv_heads, path):
    blocks = random_blocks()
    sizes = SIZES | {"num_key_value_heads": kv_heads}
    models = []
    for attention in ("pact", "sdpa"):
        torch.manual_seed(0)
        models.append(Qwen3ForCausalLM._from_config(Qwen3Config(**sizes), attn_implementation=attention))
    assert_same(by_packs(models[0], pack_blocks(blocks, 1000), path), by_plain_rows(models[1], blocks))


@pytest.mark.parametrize("mode", ["shared_prefix", "rows"])
def test_many_small_packs_equal_one(mode):
    blocks = random_blocks()
    many = pack_blocks(blocks, 33, mode)
    assert len(many) >= 3
    assert_same(by_packs(build("qwen3", "pact"), many), by_packs(build("qwen3", "pact"), pack_blocks(blocks, 1000)))


def test_eight_packs_equal_one():
    blocks = random_blocks([(4, (3, 3), True)] * 8)
    eight = pack_blocks(blocks, 10)
    assert len(eight) == 8
    assert_same(by_packs(build("qwen3", "pact"), eight), by_packs(build("qwen3", "pact"), pack_blocks(blocks, 80)))


def test_a_block_split_by_branches_equals_the_whole_block():
    blocks = random_blocks([(9, (4, 6, 2, 5), True)])
    split = pack_blocks(blocks, 16)
    assert len(split) == 3
    assert_same(by_packs(build("qwen3", "pact"), split), by_packs(build("qwen3", "pact"), pack_blocks(blocks, 100)))


def test_gradient_checkpointing_keeps_the_plan(path):
    packs = pack_blocks(random_blocks(), 1000)
    checkpointed = build("qwen3", "pact")
    enable_gradient_checkpointing(checkpointed)
    assert_same(by_packs(checkpointed.train(), packs, path), by_packs(build("qwen3", "pact").train(), packs))


def test_branches_are_blind_to_each_other_and_the_prefix_to_all_of_them():
    model = build("qwen3", "pact")
    blocks = random_blocks([(6, (4, 3), True), (5, (2,), True)])
    other = deepcopy(blocks)
    other[0].branches[0][:] = (other[0].branches[0] + 1) % VOCAB
    with torch.no_grad():
        left = token_logprobs(model, pack_blocks(blocks, 100)[0])
        right = token_logprobs(model, pack_blocks(other, 100)[0])
    same = [torch.equal(a.logp, b.logp) for a, b in zip(left, right, strict=True)]
    assert same == [True, False, True, True, True]


def test_without_a_plan_it_is_sdpa():
    ids = torch.randint(VOCAB, (2, 11), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(build("qwen3", "pact")(ids).logits, build("qwen3", "sdpa")(ids).logits, rtol=0, atol=0)


def test_without_a_plan_left_padding_and_the_cache_work_as_with_sdpa():
    ids = torch.randint(1, VOCAB, (2, 9), generator=torch.Generator().manual_seed(3))
    padding = torch.ones_like(ids)
    padding[0, :4] = 0
    settings = {"attention_mask": padding, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    ours, theirs = (build("qwen3", attention).eval().generate(ids, **settings) for attention in ("pact", "sdpa"))
    assert ours.tolist() == theirs.tolist()


def test_without_a_plan_a_prompt_fed_in_two_parts_equals_the_whole():
    model = build("qwen3", "pact").eval()
    ids = torch.randint(VOCAB, (1, 10), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        first = model(ids[:, :6], use_cache=True)
        second = model(ids[:, 6:], past_key_values=first.past_key_values)
        torch.testing.assert_close(second.logits, model(ids).logits[:, 6:], rtol=1e-4, atol=1e-5)


def test_packed_positions_without_a_plan_are_refused():
    model = build("qwen3", "pact")
    with pytest.raises(ValueError, match="pass an attention_plan"):
        model(torch.zeros(1, 4, dtype=torch.long), position_ids=torch.tensor([[0, 1, 0, 1]]))


def test_a_plan_refuses_rows_it_was_not_made_for():
    model = build("qwen3", "pact")
    plan = SharedPrefixPlan([BlockLayout(3)])
    with pytest.raises(ValueError, match="one row of 3 tokens, but the model got 1 rows of 4"):
        model(torch.zeros(1, 4, dtype=torch.long), attention_plan=plan)
    with pytest.raises(ValueError, match="leave attention_mask out"):
        model(torch.zeros(1, 3, dtype=torch.long), attention_plan=plan, attention_mask=torch.tensor([[0, 1, 1]]))


def test_models_with_windows_are_refused():
    sliding = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
    with pytest.raises(ValueError, match="sliding_window"):
        build("qwen3", "pact", **sliding)(torch.zeros(1, 8, dtype=torch.long))


def test_attention_dropout_is_refused_with_a_plan():
    model = build("qwen3", "pact", attention_dropout=0.5).train()
    with pytest.raises(ValueError, match="attention_dropout"):
        token_logprobs(model, pack_blocks(random_blocks(), 1000)[0])


@pytest.mark.parametrize(("prefix", "branches"), [(0, (1,)), (2, (1, 0))])
def test_empty_parts_are_refused(prefix, branches):
    with pytest.raises(ValueError, match="at least one token each"):
        BlockLayout(prefix, branches)
    for plan in (SharedPrefixPlan, BlockwisePlan, FlexPlan):
        with pytest.raises(ValueError, match="at least one block"):
            plan([])
