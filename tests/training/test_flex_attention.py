"""FlexAttention sees what the other plans see, and is taken only where it is right and faster."""

import math
from dataclasses import replace

import pytest
import torch
from flex_here import let_flex_run_here
from hand_made import LORA, STILL, quiet_trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attention import build
from torch.nn.attention.flex_attention import create_block_mask

from pact_lightning.policy.attention import choice as attention_choice
from pact_lightning.policy.attention import flex as flex_attention
from pact_lightning.policy.attention.blockwise import BlockwisePlan
from pact_lightning.policy.attention.choice import AttentionChoice, AttentionTrial, try_attention
from pact_lightning.policy.attention.flex import FlexPlan
from pact_lightning.policy.attention.plan import AttentionShape, SharedPrefixPlan
from pact_lightning.policy.prefix_tree import BlockLayout
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.training.rollout_datamodule import RolloutDataModule

CPU = torch.device("cpu")
SIDE = 128
# Prefixes and branches that begin and end within blocks of the kernel, at their borders, and span several of them.
LONG = [BlockLayout(300, (128, 56, 1)), BlockLayout(27), BlockLayout(128, (256, 130))]
SHAPE = AttentionShape(layers=1, heads=4, kv_heads=2, head_dim=64)

lengths = st.integers(1, 280)


def trees(branches):
    return st.builds(BlockLayout, lengths, st.lists(branches, max_size=4).map(tuple))


layouts = st.lists(trees(lengths | trees(lengths)), min_size=1, max_size=3)


@pytest.fixture
def runs_here(monkeypatch):
    let_flex_run_here(monkeypatch)


def who_sees_whom(blocks, places):
    """``[T, T]``, said token by token; padding sees itself only."""
    seen = torch.eye(places, dtype=torch.bool)

    def grow(tree, start, path):
        tree = BlockLayout(tree) if isinstance(tree, int) else tree
        own = range(start, start + tree.prefix)
        for query in own:
            seen[query, start : query + 1] = True
            for earlier in path:
                seen[query, earlier.start : earlier.stop] = True
        start = own.stop
        for branch in tree.branches:
            start = grow(branch, start, [*path, own])
        return start

    start = 0
    for block in blocks:
        start = grow(block, start, [])
    return seen


@settings(deadline=None, max_examples=30)
@given(layouts)
def test_every_token_sees_its_prefix_and_its_own_branch(blocks):
    plan = FlexPlan(blocks)
    places = torch.arange(plan.places)
    expected = who_sees_whom(blocks, plan.places)
    seen = plan.mask.mask_mod(torch.tensor(0), torch.tensor(0), places[:, None], places[None])
    assert torch.equal(seen, expected)


@settings(deadline=None, max_examples=30)
@given(layouts)
def test_no_seen_block_is_skipped_and_none_in_part_is_taken_whole(blocks):
    plan = FlexPlan(blocks)
    count = plan.places // SIDE
    squares = who_sees_whom(blocks, plan.places).unflatten(1, (count, SIDE)).unflatten(0, (count, SIDE))
    some, every = squares.any(1).any(-1), squares.all(1).all(-1)
    for numbers, columns, expected in (
        (plan.mask.kv_num_blocks, plan.mask.kv_indices, some & ~every),
        (plan.mask.full_kv_num_blocks, plan.mask.full_kv_indices, every),
    ):
        listed = [columns[0, 0, row, : numbers[0, 0, row]].tolist() for row in range(count)]
        assert listed == [expected[row].nonzero()[:, 0].tolist() for row in range(count)]


MORE = [LONG, LONG[:1], [*LONG, BlockLayout(700, (9, 9))], [BlockLayout(256, (256,))]]


def trials(blocks, *plans, dtype=torch.float32, device=CPU):
    tokens = sum(block.tokens for block in blocks)
    return [try_attention(plan(blocks, device), tokens, SHAPE, dtype=dtype, device=device) for plan in plans]


def test_traced_it_equals_the_two_calls_in_values_and_gradients_at_any_length(monkeypatch):
    """And is traced for few of them: once with and once without gradients, and where two sizes happen to be equal."""
    let_flex_run_here(monkeypatch, "aot_eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for blocks in MORE:
        flex, known = trials(blocks, FlexPlan, SharedPrefixPlan)
        assert len(flex.results) == 4
        assert flex.difference(known) < 1e-3
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4


def test_the_lists_of_blocks_lie_as_compiled_kernels_read_them():
    mask = FlexPlan(LONG).mask
    assert mask.kv_indices.shape[-1] > 2
    for lists in (mask.kv_indices, mask.full_kv_indices, mask.q_indices, mask.full_q_indices):
        assert lists.is_contiguous()


@pytest.mark.slow
def test_compiled_it_equals_the_two_calls_at_any_length():
    """By torch's own compiler, which has no backward pass for CPUs."""
    with torch.no_grad():
        for blocks in MORE:
            tokens = sum(block.tokens for block in blocks)
            query, key, value = (torch.randn(1, heads, tokens, 16) for heads in (4, 2, 2))
            out, expected = (
                plan(blocks).attend(torch.nn.Identity(), query, key, value, scaling=0.25)
                for plan in (FlexPlan, SharedPrefixPlan)
            )
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_card_it_equals_the_two_calls_in_values_and_gradients(dtype):
    for blocks in (*MORE, [BlockLayout(2048, (1024,) * 4), BlockLayout(77, (5,))]):
        flex, known = trials(blocks, FlexPlan, SharedPrefixPlan, dtype=dtype, device=torch.device("cuda"))
        assert flex.difference(known) < (0.4 if dtype == torch.bfloat16 else 1e-3)


def hides(plan, rows, columns):
    """The plan, but rows of the flat row do not see columns of it; lists of blocks and all."""
    seen = plan.mask.mask_mod

    def less(batch, head, query, key):
        hidden = (query >= rows[0]) & (query < rows[1]) & (key >= columns[0]) & (key < columns[1])
        return seen(batch, head, query, key) & ~hidden

    plan.mask = create_block_mask(less, None, None, plan.places, plan.places, device="cpu")
    return plan


DEEP = [BlockLayout(750, (150, 100))]


@pytest.mark.usefixtures("runs_here")
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_the_trial_sees_what_only_deep_tokens_get_wrong(dtype):
    """Where a key is one of many, and a result much smaller than the first tokens'."""
    good, known = trials(DEEP, FlexPlan, SharedPrefixPlan, dtype=dtype)
    assert good.difference(known) < (0.2 if dtype == torch.bfloat16 else 1e-3)
    for rows, columns in (((750, 900), (128, 512)), ((375, 750), (128, 256)), ((750, 1000), (512, 640))):

        def faulty(blocks, device, rows=rows, columns=columns):
            return hides(FlexPlan(blocks, device), rows, columns)

        (bad,) = trials(DEEP, faulty, dtype=dtype)
        assert bad.difference(known) > 0.5


def test_what_is_not_finite_is_infinitely_wrong():
    results = [torch.ones(1, 3, 2), torch.ones(1, 3, 2)]
    for which in range(2):
        for value in (torch.nan, torch.inf):
            broken = [tensor.clone() for tensor in results]
            broken[which][0, 1, 0] = value
            assert AttentionTrial(0.0, tuple(broken)).difference(AttentionTrial(0.0, tuple(results))) == math.inf
    assert AttentionTrial(0.0, tuple(results)).difference(AttentionTrial(0.0, tuple(results))) == 0.0


def timed(monkeypatch, *, flex, other):
    """The real trial, as if it had taken so many seconds."""

    def trial(plan, *args, **kwargs):
        found = try_attention(plan, *args, **kwargs)
        return replace(found, seconds=flex if isinstance(plan, FlexPlan) else other)

    monkeypatch.setattr(attention_choice, "try_attention", trial)


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(attention_choice, "rank_zero_info", lines.append)
    monkeypatch.setattr(attention_choice, "rank_zero_warn", lines.append)
    return lines


def decoder():
    return build("qwen3", "pact").get_decoder()


@pytest.mark.usefixtures("runs_here")
def test_long_packs_take_it_where_it_is_faster_and_short_ones_never_ask(monkeypatch, said):
    monkeypatch.setattr(attention_choice, "_TRY_FLEX_FROM", 800)
    timed(monkeypatch, flex=0.001, other=0.002)
    choice, model = AttentionChoice(), decoder()
    assert not isinstance(choice.plan(model, LONG[:1], CPU), FlexPlan)
    assert len(said) == 1
    for _ in range(2):
        assert isinstance(choice.plan(model, LONG, CPU), FlexPlan)
    assert not isinstance(choice.plan(model, LONG[:1], CPU), FlexPlan)
    assert said[1:] == [
        "attention of long packs: flex (from 800 tokens on, tried once); 1.0 ms a layer by flex, 2.0 by blockwise, "
        "at 1,026 tokens"
    ]


@pytest.mark.usefixtures("runs_here")
def test_where_it_is_slower_it_is_taken_only_if_asked_for(monkeypatch, said):
    monkeypatch.setattr(attention_choice, "_TRY_FLEX_FROM", 800)
    timed(monkeypatch, flex=0.002, other=0.001)
    assert not isinstance(AttentionChoice().plan(decoder(), LONG, CPU), FlexPlan)
    assert "blockwise (from 800 tokens on, tried once); 2.0 ms" in said[-1]
    assert isinstance(AttentionChoice("flex").plan(decoder(), LONG[:1], CPU), FlexPlan)
    assert "flex (asked for by the recipe)" in said[-1]


@pytest.mark.usefixtures("runs_here")
@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16])
def test_where_it_differs_the_other_path_stays_with_a_warning(monkeypatch, said, dtype):
    class Blind(FlexPlan):
        """Branches that do not see their prefix."""

        def __init__(self, blocks, device=None):
            super().__init__([BlockLayout(length) for block in blocks for length in (block.prefix, *block.branches)])

    monkeypatch.setattr(attention_choice, "FlexPlan", Blind)
    plan = AttentionChoice("flex").plan(decoder().to(dtype), LONG, CPU)
    assert isinstance(plan, BlockwisePlan)
    assert "blockwise, since flex differs from it by" in said[-1]


@pytest.mark.parametrize(
    "error", [RuntimeError("no room\nfor it"), NotImplementedError("no room"), KeyError("no room")]
)
def test_where_it_cannot_run_the_other_path_stays_with_a_warning(monkeypatch, said, error):
    def broken(*args, **kwargs):
        raise error

    let_flex_run_here(monkeypatch)
    monkeypatch.setattr(flex_attention, "compiled_kernel", lambda: broken)
    choice, model = AttentionChoice("flex"), decoder()
    for _ in range(2):
        assert isinstance(choice.plan(model, LONG, CPU), BlockwisePlan)
    assert len(said) == 2, "tried once"
    assert f"blockwise, since flex failed on this device: {type(error).__name__}: " in said[-1]
    assert said[-1].rstrip("'").endswith("no room")


def test_on_a_cpu_it_is_refused_before_the_policy_is_loaded():
    module = PACTModule(policy=LORA, optimizer=STILL, attention="flex")
    data = RolloutDataModule(
        train=BundledTasks("train", count=2), prompts_per_phase=1, prompts_per_step=1, rollouts_per_prompt=2
    )
    with pytest.raises(ValueError, match="attention 'flex' is for cuda devices, but the policy is on cpu"):
        quiet_trainer(max_epochs=1).fit(module, data)
    assert module.policy is None
