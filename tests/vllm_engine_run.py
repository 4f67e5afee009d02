"""Run by a python that has vLLM (test_vllm_real.py): two adapters, one after the other, through the colocated engine.

Prints one JSON object: per adapter the rows' tokens and log-probabilities, and what the trainer gives the same tokens.
With the argument ``nf4`` the policy is a QLoRA, sampled by a base in 4 bits; with ``16-bit`` by one that is not.
"""

import json
import sys
from dataclasses import replace

import rooms  # noqa: F401  # puts the rooms on the path
import torch
from test_vllm_server import LORA, STOP, adapted, lent
from vllm_real_play import SETTINGS, difference, play_long

from pact_lightning.rollout.samplers.base import LentPolicy, SamplingConfig
from pact_lightning.rollout.samplers.vllm.engine import VLLMEngine


def main():
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        qlora(quantize_base=sys.argv[1] == "nf4")
        return
    backend = VLLMEngine(max_model_len=1024, engine_args=SETTINGS)
    backend.check(LORA)
    models = [adapted(seed) for seed in (0, 1)]
    report = []
    for temperature, model in ((1.0, models[0]), (1.0, models[1]), (0.7, models[1]), (1.0, models[0])):
        sampling = SamplingConfig(temperature)
        with backend.lend(lent(model), sampling) as sampler:
            played = play_long(sampler)
        other = models[0] if model is models[1] else models[1]
        own, foreign = (difference(weights, played, temperature) for weights in (model, other))
        ids = [[turn.ids for turn in turns] for _, turns in played]
        report.append({"own": own, "other": foreign, "ids": ids})
    print(json.dumps(report), flush=True)


def qlora(*, quantize_base):
    config = replace(LORA, adapter="qlora", dtype="bfloat16")
    backend = VLLMEngine(quantize_base=quantize_base, max_model_len=1024, engine_args=SETTINGS)
    backend.check(config)
    model = adapted(0, config)
    with backend.lend(LentPolicy(model, config, STOP), SamplingConfig()) as sampler:
        played = play_long(sampler)
    with model.disable_adapter():
        plain = difference(model, played)
    print(json.dumps({"own": difference(model, played), "without adapter": plain}), flush=True)


if __name__ == "__main__":
    main()
