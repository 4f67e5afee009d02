"""Row ``trace_vs_prompt_only``: PACT's step with trace and SFT against our prompt-only step, on the same rollouts."""

import tempfile
from pathlib import Path

import torch

from benchmarks.flops import update_flops
from benchmarks.profile import time_shares
from benchmarks.row import Rounds, Row, alternate, spreads
from benchmarks.update_case import HIDDEN_512, THREADS, UpdateCase, shape_settings

_ABOVE_OPERATIONS = 1.04
"""Most that the ratio of seconds may be above that of operations."""


def run(rounds: Rounds) -> Row:
    """Divide seconds with the trace by seconds without; the settings have the same ratio in operations."""
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        case = UpdateCase(HIDDEN_512, Path(folder))
        trace, ours = case.ours(trace=True)
        prompt, peer = case.ours(trace=False)
        timings = alternate({"ours": ours, "peer": peer}, rounds)
        shares = time_shares(ours)
        flops = [update_flops(HIDDEN_512, case.packs(side), case.head_tokens(side)) for side in (trace, prompt)]
    return Row(
        "trace_vs_prompt_only",
        timings["ours"].median,
        timings["peer"].median,
        timings["ours"].median / timings["peer"].median,
        _ABOVE_OPERATIONS * flops[0] / flops[1],
        "at most",
        timings["ours"].rounds,
        {
            **shape_settings(case),
            "ratio_of_operations": flops[0] / flops[1],
            "time_shares_of_ours": shares,
            "head_tokens": [case.head_tokens(trace), case.head_tokens(prompt)],
            "spread": spreads(timings),
        },
    )
