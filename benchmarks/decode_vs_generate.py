"""Row ``decode_vs_generate``: one sampled turn of 64 rows, beside ``transformers.generate``."""

from typing import Any

import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from benchmarks.row import Rounds, Row, alternate, spreads
from pact_lightning.policy.attention.plan import ATTENTION_NAME
from pact_lightning.rollout.samplers.base import SamplingConfig, TurnOutput, TurnRequest
from pact_lightning.rollout.samplers.transformers_sampler import TransformersSampler

ROWS, PROMPT, NEW = 64, 64, 64
# Qwen3-1.7B made small. Its vocabulary of 151,936 is scaled so that the head has the same share of the weights, 18 %.
SHAPE: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 10_430,
    "tie_word_embeddings": True,
}


def run(rounds: Rounds) -> Row:
    """Time both sides on the same number of tokens, prompts and weights; nothing ends a turn early."""
    models = {name: _model(name) for name in (ATTENTION_NAME, "sdpa")}
    compiled = with_compiled_layers(_model(ATTENTION_NAME))
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(0, SHAPE["vocab_size"], (ROWS, PROMPT), generator=generator)
    contenders = {
        "ours": lambda: _ours(models[ATTENTION_NAME], prompts),
        "peer": lambda: _generate(models["sdpa"], prompts),
        "ours, compiled": lambda: _ours(compiled, prompts),
    }
    timings = alternate(contenders, rounds)
    speeds = {name: ROWS * NEW / timing.median for name, timing in timings.items()}
    settings = {
        "unit": "tokens/s",
        "peer": "transformers.generate, sdpa, DynamicCache",
        "rows": ROWS,
        "prompt": PROMPT,
        "new_tokens": NEW,
        "model": {"architecture": "qwen3", "dtype": "float32", **SHAPE},
        "spread": spreads(timings),
        "tokens_per_second_compiled": speeds["ours, compiled"],
    }
    ratio, done = speeds["ours"] / speeds["peer"], timings["ours"].rounds
    return Row("decode_vs_generate", speeds["ours"], speeds["peer"], ratio, 1.0, "at least", done, settings)


def with_compiled_layers(model: Any) -> Any:
    """Compile each layer of a transformers model on its own, for any number of rows and columns."""
    for layer in model.get_decoder().layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)
    return model


def _model(attention: str) -> Any:
    torch.manual_seed(0)
    factory: Any = Qwen3ForCausalLM  # untyped
    return factory._from_config(Qwen3Config(**SHAPE), attn_implementation=attention).eval()


def _ours(model: Any, prompts: torch.Tensor) -> None:
    sampler = TransformersSampler(model, [], SamplingConfig())
    sampler.submit([TurnRequest(row, ids, NEW, row) for row, ids in enumerate(prompts.tolist())])
    outputs: list[TurnOutput] = []
    while len(outputs) < ROWS:
        outputs += sampler.step()
    assert {len(output.ids) for output in outputs} == {NEW}


def _generate(model: Any, prompts: torch.Tensor) -> None:
    make: Any = GenerationConfig  # untyped
    config = make(do_sample=True, top_k=0, max_new_tokens=NEW, eos_token_id=None, pad_token_id=0)
    ids = model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=config)
    assert ids.shape == (ROWS, PROMPT + NEW)
