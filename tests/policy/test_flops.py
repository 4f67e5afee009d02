"""Operations of models that are not dense or do not attend fully, worked by hand."""

import pytest
from test_text_layers import TEXT, config_of

from pact_lightning.plan.memory import NF4_BYTES, idle_expert_bytes
from pact_lightning.policy.flops import FlopCount, Work
from pact_lightning.policy.loading import PolicyConfig, policy_skeleton
from pact_lightning.policy.packing import Block, pack_blocks

LINEAR = {
    "linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
GEMMA = {
    "global_head_dim": 64, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip


def counted(kind, changes, folder, adapter="full"):
    config_of(kind, TEXT | changes).save_pretrained(folder)
    return FlopCount.of(policy_skeleton(PolicyConfig(model=str(folder), adapter=adapter, lora_r=4, dtype="float32")))


@pytest.mark.parametrize("adapter", ["full", "lora", "qlora"])
def test_a_token_of_gpt_oss_meets_two_experts_of_four_and_a_window(adapter, tmp_path):
    changes = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}
    count = counted("GptOssConfig", changes, tmp_path, adapter)
    attention = 64 * 64 + 2 * 64 * 32 + 64 * 64  # queries, keys and values, output
    experts = 2 * (64 * 128 + 64 * 64)  # of two: gate and up, down
    assert count.base == 2 * (attention + experts) == 73_728
    assert sorted(count.reach, key=str) == [(64, 8), (64, None)]
    # Ten tokens: 55 pairs in full attention; in a window of 8 they see 1 to 8, and then 8 and 8.
    assert count.attention(10) == 64 * (55 + 36 + 16) == 6_848
    assert count.attention(2, 9) == 64 * (10 + 11 + 8 + 8)
    if adapter == "full":
        work = Work(10, 1, count.attention(10))
        assert count.forward(work) == 2 * 73_728 * 10 + 2 * 4_096 + 4 * 6_848 == 1_510_144
        assert count.backward(work) == 2 * 1_510_144  # each product has two gradients


def test_a_decoding_step_reads_the_experts_that_some_row_meets(tmp_path):
    """Each row meets two of four, so that one expert in 2^rows is read by none."""
    config_of("GptOssConfig", TEXT | {"num_local_experts": 4, "num_experts_per_tok": 2}).save_pretrained(tmp_path)
    skeleton = policy_skeleton(PolicyConfig(model=str(tmp_path), adapter="lora", lora_r=4, dtype="float32"))
    in_float32 = 4 * 2 * 4 * (64 * 128 + 64 * 64)  # bytes, layers, experts: 393,216
    assert [idle_expert_bytes(skeleton, "lora", rows) for rows in (1, 3)] == [in_float32 // 2, in_float32 // 8]
    assert idle_expert_bytes(skeleton, "qlora", 1) == round(in_float32 // 4 * NF4_BYTES / 2)


def test_linear_attention_counts_its_state_and_not_pairs(tmp_path):
    count = counted("Qwen3_5TextConfig", LINEAR, tmp_path)
    assert count.state == 2 * 16 * 8  # value heads, width of keys, width of values; of one layer
    assert count.reach == ((64, None),)
    work = Work(10, 0, count.attention(10))
    assert count.attention(10) == 64 * 55
    assert count.forward(work) == 2 * count.base * 10 + 2 * 3 * 256 * 10 + 4 * 64 * 55
    assert count.backward(work) == 2 * count.forward(work)


def test_layers_of_gemma_have_heads_of_two_widths(tmp_path):
    count = counted("Gemma4TextConfig", GEMMA, tmp_path)
    assert count.reach == ((2 * 32, 8), (2 * 64, None))


def test_latent_attention_has_one_width_for_scores_and_one_for_values(tmp_path):
    latent = {
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
        "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32,
        "first_k_dense_replace": 1, "n_shared_experts": 1,
    }  # fmt: skip
    config = {name: value for name, value in (TEXT | latent).items() if name != "head_dim"}
    config_of("DeepseekV3Config", config).save_pretrained(tmp_path)
    count = FlopCount.of(policy_skeleton(PolicyConfig(model=str(tmp_path), adapter="full", dtype="float32")))
    assert count.reach == ((2 * 2 * (16 + 8 + 16) // 2, None),)  # layers, heads


def test_rows_are_counted_where_rows_run(tmp_path):
    """Two branches behind nine tokens: those run once in a pack, and twice in models that attend in their own way."""
    (pack,) = pack_blocks([Block(list(range(9)), [list(range(20, 27)), list(range(30, 34))])], 1000)
    rows = counted("GptOssConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}, tmp_path / "rows")
    packed = counted("Qwen3Config", {}, tmp_path / "packed")
    assert rows.of_pack(pack, 3) == Work(16 + 13, 3, rows.attention(16) + rows.attention(13))
    assert packed.of_pack(pack, 3) == Work(
        9 + 7 + 4, 3, packed.attention(9) + packed.attention(7, 9) + packed.attention(4, 9)
    )
