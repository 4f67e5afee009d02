"""FlexAttention sees what the other plans see, and is taken only where it is right and faster."""

from dataclasses import replace

import pytest
import torch
from hand_made import LORA, STILL, quiet_trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attention import build

from pact_lightning.datamodule import RolloutDataModule
from pact_lightning.environments.bundled.tasks import BundledTasks
from pact_lightning.module import PACTModule
from pact_lightning.policy import attention_choice
from pact_lightning.policy.attention import BlockLayout, SharedPrefixPlan
from pact_lightning.policy.attention_choice import AttentionChoice
from pact_lightning.policy.attention_shape import AttentionShape
from pact_lightning.policy.attention_trial import try_attention
from pact_lightning.policy.blockwise_attention import BlockwisePlan
from pact_lightning.policy.flex_attention import FlexPlan, _compiled

CPU = torch.device("cpu")
SIDE = 128
# Prefixes and branches that begin and end within blocks of the kernel, at their borders, and span several of them.
LONG = [BlockLayout(300, (128, 56, 1)), BlockLayout(27), BlockLayout(128, (256, 130))]
SHAPE = AttentionShape(layers=1, heads=4, kv_heads=2, head_dim=16)

lengths = st.integers(1, 280)
layouts = st.lists(st.builds(BlockLayout, lengths, st.lists(lengths, max_size=4).map(tuple)), min_size=1, max_size=3)


@pytest.fixture
def runs_here(monkeypatch):
    """Without its compiler, which has no backward pass for CPUs."""
    monkeypatch.setattr(FlexPlan, "available", staticmethod(lambda device: True))
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda query, key, value: None)


def who_sees_whom(blocks, places):
    """``[T, T]``, said token by token; padding sees itself only."""
    seen = torch.eye(places, dtype=torch.bool)
    start = 0
    for block in blocks:
        prefix = range(start, start + block.prefix)
        for query in prefix:
            seen[query, start : query + 1] = True
        begin = prefix.stop
        for length in block.branches:
            for query in range(begin, begin + length):
                seen[query, start : prefix.stop] = True
                seen[query, begin : query + 1] = True
            begin += length
        start = begin
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


@pytest.mark.usefixtures("runs_here")
def test_long_rows_equal_the_two_calls_in_values_and_gradients():
    tokens = sum(block.tokens for block in LONG)
    trials = [
        try_attention(plan(LONG), tokens, SHAPE, dtype=torch.float32, device=CPU)
        for plan in (FlexPlan, SharedPrefixPlan)
    ]
    assert len(trials[0].results) == 4
    assert trials[0].difference(trials[1]) < 1e-5


@pytest.mark.slow
def test_compiled_it_equals_the_two_calls_at_any_length():
    with torch.no_grad():
        for blocks in (LONG, LONG[:1], [*LONG, BlockLayout(700, (9, 9))]):
            tokens = sum(block.tokens for block in blocks)
            plan = FlexPlan(blocks)
            query, key, value = (torch.randn(1, heads, tokens, 16) for heads in (4, 2, 2))
            padded = [torch.nn.functional.pad(part, (0, 0, 0, plan.places - tokens)) for part in (query, key, value)]
            out = _compiled()(*padded, block_mask=plan.mask, scale=0.25, enable_gqa=True)[:, :, :tokens].transpose(1, 2)
            expected = SharedPrefixPlan(blocks).attend(torch.nn.Identity(), query, key, value, scaling=0.25)
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_card_it_equals_the_two_calls_in_values_and_gradients(dtype):
    card = torch.device("cuda")
    for blocks in (LONG, [BlockLayout(2048, (1024,) * 4), BlockLayout(77, (5,))]):
        tokens = sum(block.tokens for block in blocks)
        flex, known = (
            try_attention(plan(blocks, card), tokens, SHAPE, dtype=dtype, device=card)
            for plan in (FlexPlan, SharedPrefixPlan)
        )
        assert flex.difference(known) < (0.02 if dtype == torch.bfloat16 else 1e-3)


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_it_differs_the_other_path_stays_with_a_warning(monkeypatch, said, dtype):
    class Blind(FlexPlan):
        """Branches that do not see their prefix."""

        def __init__(self, blocks, device=None):
            super().__init__([BlockLayout(length) for block in blocks for length in (block.prefix, *block.branches)])

    monkeypatch.setattr(attention_choice, "FlexPlan", Blind)
    plan = AttentionChoice("flex").plan(decoder().to(dtype), LONG, CPU)
    assert isinstance(plan, BlockwisePlan)
    assert "blockwise, since flex differs from it by" in said[-1]


def test_where_it_cannot_run_the_other_path_stays_with_a_warning(monkeypatch, said):
    monkeypatch.setattr(FlexPlan, "available", staticmethod(lambda device: True))
    choice, model = AttentionChoice("flex"), decoder()
    for _ in range(2):
        assert isinstance(choice.plan(model, LONG, CPU), BlockwisePlan)
    assert len(said) == 2, "tried once"
    assert "blockwise, since flex failed on this device: NotImplementedError: FlexAttention does not" in said[-1]


def test_on_a_cpu_it_is_refused_before_the_policy_is_loaded():
    module = PACTModule(policy=LORA, optimizer=STILL, attention="flex")
    with pytest.raises(ValueError, match="attention 'flex' needs a CUDA device and Triton"):
        quiet_trainer().fit(module, RolloutDataModule(train=BundledTasks("train", count=2)))
    assert module.policy is None
