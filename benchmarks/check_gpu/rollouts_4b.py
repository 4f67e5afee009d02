"""Check of sampling by a Qwen3-4B of random weights in 4 bits, beside ``transformers.generate``."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from benchmarks.check_gpu.child import Figures
from benchmarks.check_gpu.random_policy import QLORA, QWEN3_4B, random_base
from benchmarks.update_case import TWO_MILLION, Lengths, UpdateCase
from pact_lightning.policy.loading import PolicyConfig, made_trainable
from pact_lightning.rollout.samplers.base import SamplingConfig, TurnOutput, TurnRequest
from pact_lightning.rollout.samplers.transformers_sampler import TransformersSampler
from pact_lightning.utils.clock import device_time


def run(figures: Figures) -> None:
    """Time both on the same prompts, each once after a short run that does not count."""
    device = torch.device("cuda" if figures.card else "cpu")
    rows, prompt, new_tokens = (64, 2048, 64) if figures.card else (4, 64, 4)
    with tempfile.TemporaryDirectory() as folder:
        UpdateCase(QWEN3_4B if figures.card else TWO_MILLION, Path(folder), Lengths(), "bfloat16", weights=False)
        config = PolicyConfig(model=folder, dtype="bfloat16", **QLORA)
        model: Any = made_trainable(random_base(folder, device), config).eval()
    prompts = torch.randint(0, 1000, (rows, prompt), generator=torch.Generator().manual_seed(1))

    def ours(tokens: int) -> None:
        sampler = TransformersSampler(model, [], SamplingConfig())
        sampler.submit([TurnRequest(row, ids, tokens, row) for row, ids in enumerate(prompts.tolist())])
        ended: list[TurnOutput] = []
        while len(ended) < rows:
            ended += sampler.step()

    def generate(tokens: int) -> None:
        make: Any = GenerationConfig  # untyped
        config = make(do_sample=True, top_k=0, max_new_tokens=tokens, eos_token_id=None, pad_token_id=0, use_cache=True)
        inputs = prompts.to(device)
        model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=config)

    for name, sample in (("ours", ours), ("generate", generate)):
        with figures.part(name), torch.no_grad():
            sample(2)
            if figures.card:
                torch.cuda.reset_peak_memory_stats(device)
            began = device_time(device)
            sample(2)
            prefill = device_time(device) - began
            began = device_time(device)
            sample(new_tokens)
            seconds = device_time(device) - began
            figures.note(f"{name}: s for {new_tokens} tokens of {rows} rows after {prompt}", seconds)
            figures.note(f"{name}: decoded tokens/s, prefill left out", rows * (new_tokens - 2) / (seconds - prefill))
            if figures.card:
                figures.note(f"{name}: peak, GiB", torch.cuda.max_memory_allocated(device) / 2**30)
