"""Row ``update_vs_trl``: PACT's trace step against TRL's GRPO step on the same rollouts without any trace."""

import tempfile
from pathlib import Path

import torch

from benchmarks.flops import KEPT_LOGITS, update_flops
from benchmarks.row import Rounds, Row, alternate, spreads
from benchmarks.update_case import HIDDEN_512, THREADS, Lengths, UpdateCase, shape_settings
from pact_lightning.policy.packing import pack_blocks

GOAL = 0.92
"""Share of the ratio of operations, which is what both sides would reach at one speed per operation."""


def run(rounds: Rounds) -> Row:
    """Measure the row at hidden 512, where the linear layers dominate."""
    return measure("update_vs_trl", HIDDEN_512, rounds)


def measure(bench: str, sizes: dict[str, int], rounds: Rounds, lengths: Lengths | None = None) -> Row:
    """Time both sides on a model of these sizes, after a check that their losses without a trace are equal.

    The ratio is the speed-up as a share of the ratio of operations, both sides counted alike: TRL runs K rows of prompt
    and response, and keeps its logits.
    """
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        case = UpdateCase(sizes, Path(folder), lengths or Lengths())
        anchor, anchor_update = case.ours(trace=False)
        _, trl = case.trl(case.group(anchor))
        same = (anchor_update(), trl())
        if abs(same[0] - same[1]) > 1e-5:
            raise RuntimeError(f"the two sides compute different losses without a trace: {same[0]} and {same[1]}")
        rows = pack_blocks(case.blocks(anchor), 1, "rows")
        del anchor, anchor_update
        trace, ours = case.ours(trace=True)
        timings = alternate({"ours": ours, "peer": trl}, rounds, warm=("peer",))
    packs, responses = case.packs(trace), case.lengths.response * case.lengths.samples
    operations = [
        update_flops(sizes, packs, case.head_tokens(trace)),
        update_flops(sizes, rows, responses, head_passes=KEPT_LOGITS),
    ]
    tokens = [sum(pack.tokens for pack in side) for side in (packs, rows)]
    speedup = timings["peer"].median / timings["ours"].median
    return Row(
        bench,
        timings["ours"].median,
        timings["peer"].median,
        speedup / (operations[1] / operations[0]),
        GOAL,
        "at least",
        timings["ours"].rounds,
        {
            **shape_settings(case),
            "ours_is": "trace-conditioned surrogate and SFT, forward and backward, full weights, no optimiser step",
            "peer_is": "GRPOTrainer._compute_loss and backward on prompt + response, beta 0, checkpointing off",
            "loss_without_trace": same,
            "speedup": speedup,
            "ratio_of_operations": operations[1] / operations[0],
            "ratio_of_tokens": tokens[1] / tokens[0],
            "spread": spreads(timings),
        },
    )
