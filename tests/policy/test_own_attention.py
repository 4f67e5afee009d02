"""Models with windows, sinks or linear attention: their rows by transformers' own functions, trained and sampled."""

import pytest
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from pact_lightning.policy.attention.plan import register_attention
from pact_lightning.policy.logprobs import token_logprobs
from pact_lightning.policy.own_attention import attention_for, own_attention
from pact_lightning.policy.packing import Block, pack_blocks
from pact_lightning.rollout.samplers.base import SamplingConfig, TurnRequest
from pact_lightning.rollout.samplers.own_cache import OwnCacheSampler

register_attention()
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
WINDOW = {"sliding_window": 6}
GEMMA_4 = {
    **WINDOW, "final_logit_softcapping": 2.0, "global_head_dim": 8, "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 64, "num_kv_shared_layers": 0,
}  # fmt: skip
GPT_OSS = {**WINDOW, "num_local_experts": 2, "num_experts_per_tok": 1}
LATENT = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "head_dim": 4,
    "num_key_value_heads": 4, "first_k_dense_replace": 4,
}  # fmt: skip
MODELS = {
    "Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", WINDOW, "sliding attention"),
    "Gemma4": ("Gemma4TextConfig", "Gemma4ForCausalLM", GEMMA_4, "sliding attention"),
    "gpt-oss": ("GptOssConfig", "GptOssForCausalLM", GPT_OSS, "attention sinks"),
    "Qwen3.5": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM", LINEAR, "linear attention"),
    "DeepSeek V3": ("DeepseekV3Config", "DeepseekV3ForCausalLM", LATENT, "latent attention"),
}


def tiny(name):
    config_name, model_name, changes, _ = MODELS[name]
    if not hasattr(transformers, config_name):
        pytest.skip(f"this transformers has no {config_name}")
    torch.manual_seed(0)
    config = getattr(transformers, config_name)(**(SIZES | changes))
    return (
        getattr(transformers, model_name)
        ._from_config(config, attn_implementation=attention_for(config, "auto"))
        .float()
    )


def drawn(*lengths):
    return [torch.randint(3, 64, (length,)) for length in lengths]


def plain_logps(model, row):
    """Log-probabilities of a row's tokens behind the first one, by the whole model."""
    logits = model(input_ids=row[None], use_cache=False).logits[0].float()
    return logits.log_softmax(-1)[:-1].gather(-1, row[1:, None])[:, 0]


@pytest.mark.parametrize("name", MODELS)
def test_a_pack_gives_what_plain_rows_give_with_gradients(name):
    model = tiny(name)
    assert MODELS[name][3] in own_attention(model.config)
    prefix, *branches = drawn(9, 7, 4)
    other, alone = drawn(5, 6)
    blocks = [Block(prefix, branches, read_prefix=True), Block(other, [alone])]
    (pack,) = pack_blocks(blocks, 1000)
    assert pack.tokens < pack.row_tokens
    scores = token_logprobs(model, pack)
    rows = [torch.cat([prefix, branch]) for branch in branches] + [torch.cat([other, alone])]
    plain = [plain_logps(model, row) for row in rows]
    wanted = {(0, 0): plain[0][8:], (0, 1): plain[1][8:], (1, 0): plain[2][4:], (0, -1): plain[0][:8]}
    for read, score in zip(pack.reads, scores, strict=True):
        torch.testing.assert_close(score.logp, wanted[read.block, read.branch], rtol=1e-4, atol=1e-5)
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(sum(score.logp.sum() for score in scores), parameters, allow_unused=True)
    theirs = torch.autograd.grad(sum(part.sum() for part in wanted.values()), parameters, allow_unused=True)
    for mine, other_one in zip(ours, theirs, strict=True):
        assert (mine is None) == (other_one is None)
        if mine is not None:
            torch.testing.assert_close(mine, other_one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_the_sampler_draws_what_training_scores_over_several_turns(name):
    model = tiny(name).eval()
    sampler = OwnCacheSampler(model, [2], SamplingConfig())
    prompt = drawn(11)[0].tolist()
    sampler.submit([TurnRequest(row, tuple(prompt), 9, 5 + row, shared_prompt="p") for row in range(3)])
    streams = {row: list(prompt) for row in range(3)}
    logps = {row: [] for row in range(3)}

    def finish(rows):
        left = set(rows)
        while left:
            for turn in sampler.step():
                streams[turn.row] += turn.ids
                begin = len(streams[turn.row]) - len(turn.ids)
                logps[turn.row] += enumerate(turn.logps, begin)
                left.discard(turn.row)

    finish(range(3))
    sampler.release(0)  # the last row moves into its slot
    more = drawn(8)[0].tolist()
    for row in (1, 2):
        streams[row] += more
    sampler.submit([TurnRequest(row, tuple(more), 7, 30 + row) for row in (1, 2)])
    finish((1, 2))
    for row in range(3):
        with torch.no_grad():
            plain = plain_logps(model, torch.tensor(streams[row]))
        for place, logp in logps[row]:
            assert abs(float(plain[place - 1]) - logp) < 1e-3


def test_rows_by_eager_attention_are_the_pack_of_a_model_that_knows_plans():
    config = LlamaConfig(**SIZES)
    models = [LlamaForCausalLM._from_config(config, attn_implementation=kind).float() for kind in ("pact", "eager")]
    models[1].load_state_dict(models[0].state_dict())
    prefix, *branches = drawn(9, 7, 4)
    (pack,) = pack_blocks([Block(prefix, branches)], 1000)
    packed, rows = ([score.logp for score in token_logprobs(model, pack)] for model in models)
    for ours, theirs in zip(packed, rows, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_auto_keeps_packs_where_attention_is_full():
    assert attention_for(LlamaConfig(), "auto") == "pact"
    assert attention_for(transformers.Qwen3Config(), "auto") == "pact"
    assert attention_for(transformers.MistralConfig(sliding_window=4096), "auto") is None
    assert attention_for(transformers.GptOssConfig(), "eager") == "eager"
