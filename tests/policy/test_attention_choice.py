"""Which attention runs is chosen by the device, checked against plain rows, and said."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_attention import build, random_blocks

from pact_lightning.policy.attention import choice as attention_choice
from pact_lightning.policy.attention.blockwise import BlockwisePlan
from pact_lightning.policy.attention.choice import AttentionChoice, choose_path, make_plan
from pact_lightning.policy.attention.plan import SharedPrefixPlan
from pact_lightning.policy.packing import pack_blocks
from pact_lightning.policy.prefix_tree import BlockLayout

CPU = torch.device("cpu")
LAYOUTS = [BlockLayout(9, (4, 2)), BlockLayout(3)]


class Wrong(BlockwisePlan):
    """A plan that lets a branch see less than its whole prefix."""

    def __init__(self, blocks):
        super().__init__(blocks)
        self.over.clear()


def test_auto_is_blockwise_on_a_cpu_and_two_calls_on_cuda(monkeypatch):
    assert choose_path(CPU)[0] == "blockwise"
    assert choose_path(torch.device("cuda"))[0] == "two_calls"
    monkeypatch.setattr(BlockwisePlan, "available", staticmethod(lambda: False))
    assert choose_path(CPU)[0] == "two_calls"


def test_the_choice_is_made_once_and_said_with_its_reason(monkeypatch):
    said = []
    monkeypatch.setattr(attention_choice, "rank_zero_info", said.append)
    choice, decoder = AttentionChoice(), build("qwen3", "pact").get_decoder().train()
    for _ in range(2):
        assert isinstance(choice.plan(decoder, LAYOUTS, CPU), BlockwisePlan)
    assert len(said) == 1
    assert "packed rows use blockwise attention (flash kernels for CPUs" in said[0]
    assert decoder.training, "the check leaves the mode as it was"


def test_a_path_that_differs_from_plain_rows_is_replaced_and_told(monkeypatch):
    warned = []
    monkeypatch.setattr(attention_choice, "rank_zero_warn", warned.append)
    monkeypatch.setattr(attention_choice, "BlockwisePlan", Wrong)
    choice = AttentionChoice("blockwise")
    assert isinstance(choice.plan(build("qwen3", "pact").get_decoder(), LAYOUTS, CPU), SharedPrefixPlan)
    assert len(warned) == 1
    assert "blockwise differs from plain rows by" in warned[0]


def test_where_no_path_is_right_rows_are_recommended(monkeypatch):
    monkeypatch.setattr(attention_choice, "BlockwisePlan", Wrong)
    monkeypatch.setattr(attention_choice, "SharedPrefixPlan", lambda layouts, device: Wrong(layouts))
    with pytest.warns(UserWarning, match="differs"), pytest.raises(RuntimeError, match="set packing: rows"):
        AttentionChoice().plan(build("qwen3", "pact").get_decoder(), LAYOUTS, CPU)


def test_a_path_that_does_not_exist_or_is_for_another_device_is_refused():
    with pytest.raises(ValueError, match="unknown attention 'dense'"):
        make_plan(LAYOUTS, CPU, "dense")
    with pytest.raises(ValueError, match="'blockwise' is for cpu devices"):
        make_plan(LAYOUTS, torch.device("cuda"), "blockwise")


def test_places_count_what_is_padded():
    layouts = [BlockLayout(8, (4, 4, 3)), BlockLayout(7, (1,))]
    assert BlockwisePlan(layouts).places == 8 + 11 + 7 + 1
    assert SharedPrefixPlan(layouts).places == 2 * 8 + 2 * 4 + 3 + 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_pass_the_check(dtype):
    decoder = build("qwen3", "pact").get_decoder().to(dtype)
    packs = pack_blocks(random_blocks(), 1000)
    assert isinstance(AttentionChoice().plan(decoder, packs[0].layouts, CPU), BlockwisePlan)


def test_an_adapter_on_the_embeddings_passes_the_check():
    policy = get_peft_model(build("qwen3", "pact"), LoraConfig(target_modules=["embed_tokens", "lm_head"]))
    decoder = policy.get_base_model().get_decoder()
    assert isinstance(AttentionChoice().plan(decoder, LAYOUTS, CPU), BlockwisePlan)
