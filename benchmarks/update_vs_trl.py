"""Row ``update_vs_trl``: PACT's trace step against TRL's GRPO step on the same rollouts without any trace."""

import tempfile
from pathlib import Path

import torch

from benchmarks.row import Rounds, Row, alternate, spreads
from benchmarks.update_case import HIDDEN_512, THREADS, UpdateCase, shape_settings


def run(rounds: Rounds) -> Row:
    """Measure the row at hidden 512, where the linear layers dominate."""
    return measure("update_vs_trl", HIDDEN_512, rounds, goal=2.0)


def measure(bench: str, sizes: dict[str, int], rounds: Rounds, *, goal: float) -> Row:
    """Time both sides on a model of these sizes, after a check that their losses without a trace are equal."""
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        case = UpdateCase(sizes, Path(folder))
        anchor, anchor_update = case.ours(trace=False)
        _, trl = case.trl(case.group(anchor))
        same = (anchor_update(), trl())
        if abs(same[0] - same[1]) > 1e-5:
            raise RuntimeError(f"the two sides compute different losses without a trace: {same[0]} and {same[1]}")
        del anchor, anchor_update
        _, ours = case.ours(trace=True)
        timings = alternate({"ours": ours, "peer": trl}, rounds, warm=("peer",))
    return Row(
        bench,
        timings["ours"].median,
        timings["peer"].median,
        timings["peer"].median / timings["ours"].median,
        goal,
        "at least",
        timings["ours"].rounds,
        {
            **shape_settings(case),
            "ours_is": "trace-conditioned surrogate and SFT, forward and backward, full weights, no optimiser step",
            "peer_is": "GRPOTrainer._compute_loss and backward on prompt + response, beta 0, checkpointing off",
            "loss_without_trace": same,
            "spread": spreads(timings),
        },
    )
