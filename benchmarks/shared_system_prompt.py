"""Row ``shared_system_prompt``: prompts of a step that begin with the same system turn, against sharing per prompt."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.row import Rounds, Row, alternate, spreads
from benchmarks.update_case import HIDDEN_256, THREADS, Lengths, UpdateCase
from pact_lightning.policy.attention.choice import AttentionChoice
from pact_lightning.policy.loading import PolicyConfig, load_policy
from pact_lightning.policy.logprobs import token_logprobs
from pact_lightning.policy.packing import Block, Pack, pack_blocks

_PROMPTS, _SYSTEM, _REQUEST, _SAMPLES, _RESPONSE = 8, 3072, 128, 8, 256
_LIMIT = 65_536


def run(rounds: Rounds) -> Row:
    """Divide seconds with sharing per prompt by seconds with sharing over all prompts of the step."""
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        case = UpdateCase(HIDDEN_256, Path(folder), Lengths())
        model = load_policy(PolicyConfig(model=str(case.folder), adapter="full", dtype=case.dtype))
    attention = AttentionChoice()

    def update(packs: list[Pack]) -> float:
        model.zero_grad()
        total = 0.0
        for pack in packs:
            scores = token_logprobs(model, pack, attention=attention)
            loss = torch.stack([score.logp.sum() for score in scores]).sum() / (_PROMPTS * _SAMPLES * _RESPONSE)
            torch.autograd.backward(loss)
            total += float(loss.detach())
        return total

    blocks = _blocks()
    packs = {
        "ours": pack_blocks(blocks, _LIMIT),
        "peer": [pack for block in blocks for pack in pack_blocks([block], _LIMIT)],
    }
    same = [update(found) for found in packs.values()]
    if abs(same[0] - same[1]) > 1e-4:
        raise RuntimeError(f"the two sides compute different losses: {same[0]} and {same[1]}")
    timings = alternate({name: partial(update, found) for name, found in packs.items()}, rounds, warm=tuple(packs))
    settings: dict[str, Any] = {
        "unit": "s",
        "prompts": _PROMPTS,
        "system": _SYSTEM,
        "request": _REQUEST,
        "samples": _SAMPLES,
        "response": _RESPONSE,
        "tokens": {name: sum(pack.tokens for pack in found) for name, found in packs.items()},
        "losses": same,
        "spread": spreads(timings),
    }
    ours, peer = (timings[name].median for name in ("ours", "peer"))
    return Row("shared_system_prompt", ours, peer, peer / ours, 1.5, "at least", timings["ours"].rounds, settings)


def _blocks() -> list[Block]:
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> Tensor:
        return torch.randint(1_000, (length,), generator=generator)

    system = ids(_SYSTEM)
    return [
        Block(torch.cat([system, ids(_REQUEST)]), [ids(_RESPONSE) for _ in range(_SAMPLES)]) for _ in range(_PROMPTS)
    ]
