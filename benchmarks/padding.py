"""Row ``padding``: padding share of packs on prompts as long as FTRL's, attention included."""

import random
from bisect import bisect
from itertools import count, islice

import torch

from benchmarks.row import Rounds, Row
from pact_lightning.policy.attention.choice import make_plan
from pact_lightning.policy.attention.plan import SharedPrefixPlan
from pact_lightning.policy.packing import Block, Pack, pack_blocks

_STEPS, _PROMPTS, _SAMPLES, _LIMIT = 5, 32, 8, 32_768
_QUANTILES = ((0.0, 486), (0.5, 3_914), (0.9, 5_112), (1.0, 6_427))
"""Tokens of FTRL's prompts with tools; straight lines between."""
_TRACE, _RESPONSE = (6.7, 0.5, 128, 4_096), (6.2, 0.8, 32, 8_192)
"""Log-normal mean and spread, smallest and largest: medians of 810 and 490 tokens."""


def run(rounds: Rounds) -> Row:
    """Divide computed places without a token by all computed places, over some optimiser steps."""
    del rounds  # nothing is timed
    draw = random.Random(0)
    steps = [_blocks(draw) for _ in range(_STEPS)]
    packs = [pack for blocks in steps for pack in pack_blocks(blocks, _LIMIT)]
    real = sum(pack.tokens for pack in packs)
    places = sum(_places(pack) for pack in packs)
    batch_real, batch_places = _as_batches(steps)
    share, peer = 1 - real / places, 1 - batch_real / batch_places
    settings = {
        "unit": "share",
        "steps": _STEPS,
        "prompts_per_step": _PROMPTS,
        "samples": _SAMPLES,
        "max_tokens_per_forward": _LIMIT,
        "prompt_quantiles": _QUANTILES,
        "trace_lognormal": _TRACE,
        "response_lognormal": _RESPONSE,
        "packs": len(packs),
        "filled": real / (len(packs) * _LIMIT),
        "share_by_two_calls": 1 - real / sum(SharedPrefixPlan(pack.layouts).places for pack in packs),
        "counted": "query places of every attention call; all other layers run on the flat row, without padding",
        "peer_is": "the same rollouts behind prompt and trace as padded batches of K rows",
    }
    return Row("padding", share, peer, share, 0.05, "at most", _STEPS, settings)


def _places(pack: Pack) -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return make_plan(pack.layouts, device).places


def _blocks(draw: random.Random) -> list[Block]:
    fresh = count()  # no id comes twice: nothing is shared but the prompt of a group

    def ids(length: int) -> list[int]:
        return list(islice(fresh, length))

    return [
        Block(
            ids(_prompt(draw) + _lognormal(draw, *_TRACE)),
            [ids(_lognormal(draw, *_RESPONSE)) for _ in range(_SAMPLES)],
            read_prefix=True,
        )
        for _ in range(_PROMPTS)
    ]


def _prompt(draw: random.Random) -> int:
    share = draw.random()
    after = min(bisect([quantile for quantile, _ in _QUANTILES], share), len(_QUANTILES) - 1)
    (low, short), (high, long) = _QUANTILES[after - 1 : after + 1]
    return round(short + (long - short) * (share - low) / (high - low))


def _lognormal(draw: random.Random, mean: float, spread: float, smallest: int, largest: int) -> int:
    return min(max(round(draw.lognormvariate(mean, spread)), smallest), largest)


def _as_batches(steps: list[list[Block]]) -> tuple[int, int]:
    real = places = 0
    for block in (block for blocks in steps for block in blocks):
        lengths = [len(block.prefix) + len(branch) for branch in block.branches]
        real += sum(lengths)
        places += len(lengths) * max(lengths)
    return real, places
