"""What a phase cost: seconds by part, operations, utilisation."""

import csv
import logging
import time

import pytest
import torch
from cli_recipe import saved
from hand_made import FULL, LORA
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import attended_pairs
from pact_lightning.cli.main import main
from pact_lightning.policy.attention.choice import AttentionChoice
from pact_lightning.policy.flops import FlopCount, Work, causal_pairs, peak_flops, peak_flops_of
from pact_lightning.policy.loading import load_policy
from pact_lightning.policy.logprobs import token_logprobs
from pact_lightning.policy.packing import Block, pack_blocks
from pact_lightning.policy.prefix_tree import BlockLayout
from pact_lightning.update.performance import performance_line
from pact_lightning.utils.clock import PARTS, PhaseClock


class Ticks:
    """A clock that the test moves."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def __call__(self, seconds):
        self.now += seconds

    def then_fail(self, seconds):
        self(seconds)
        raise KeyError


@pytest.fixture
def tick(monkeypatch):
    return Ticks(monkeypatch)


def test_parts_take_their_own_seconds_and_the_rest_is_other(tick):
    clock = PhaseClock()
    tick(50)
    clock.start(torch.device("cpu"))
    tick(1)
    with clock.measure("forward"):
        tick(2)
        with clock.measure("reference"):
            tick(3)
        tick(4)
    tick(5)
    with clock.measure("forward"):
        tick(6)
    tick(70)
    assert clock.seconds == {"forward": 12, "reference": 3}
    assert (clock.total, clock.other) == (21, 6), "what comes after the last part is not the phase's"


def test_a_part_that_ends_in_an_error_still_counts_and_a_new_phase_begins_at_zero(tick):
    clock = PhaseClock()
    clock.start(torch.device("cpu"))
    with pytest.raises(KeyError), clock.measure("forward"), clock.measure("reference"):
        tick.then_fail(2)
    with clock.measure("step"):
        tick(1)
    clock.add("tools", 0.5)
    assert clock.seconds == {"forward": 0, "reference": 2, "step": 1, "tools": 0.5}
    clock.start(torch.device("cpu"))
    assert (clock.seconds, clock.total) == ({}, 0)


def test_pairs_are_those_that_the_mask_of_the_blocks_lets_through():
    layouts = [BlockLayout(5, (3, 1)), BlockLayout(4)]
    seen = 0
    for layout in layouts:
        starts = [0, layout.prefix]
        for length in layout.branches:
            starts.append(starts[-1] + length)
        for query in range(layout.tokens):
            own = max(start for start in starts if start <= query)
            seen += query - own + 1 + (layout.prefix if own else 0)
    assert attended_pairs(layouts) == seen
    deep = [BlockLayout(5, (BlockLayout(3, (2, 1)), 1))]  # 1 to 5; 6 to 8; 9, 10; 9; 6
    assert attended_pairs(deep) == 15 + 21 + 19 + 9 + 6
    assert causal_pairs(3, 5) == 6 + 7 + 8
    assert causal_pairs(5, 1, window=4) == 2 + 3 + 4 + 4 + 4
    assert [causal_pairs(3, 5, window) for window in (2, 7, 9)] == [2 + 2 + 2, 6 + 7 + 7, 6 + 7 + 8]


@pytest.mark.parametrize("policy", [FULL, LORA], ids=["full", "lora"])
def test_the_count_is_that_of_torch_for_one_forward_and_its_backward(policy):
    """Torch counts what is run: every pair of a causal square, and the head's chunks anew in the backward pass."""
    model = load_policy(policy)
    (pack,) = pack_blocks([Block(list(range(100, 140)), read_prefix=True)], 64)
    count = FlopCount.of(model)
    ((width, window),) = count.reach
    assert window is None
    work = Work(tokens=40, head_tokens=39, attention=width * 40 * 40)
    attention = AttentionChoice("two_calls")  # torch does not count the operations of the other path
    token_logprobs(model, pack, attention=attention)  # its check at first use
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            (scores,) = token_logprobs(model, pack, attention=attention)
        with FlopCounterMode(display=False) as backward:
            scores.logp.sum().backward()
    head = 2 * count.head * work.head_tokens
    # A frozen head has its gradient in the forward pass. A trained one makes its logits anew in the backward pass, and
    # torch does not count the product that is added to the gradient of its weight in place: these two cancel.
    assert forward.get_total_flops() == count.forward(work) + (head if policy is LORA else 0)
    expected = count.backward(work) - (head if policy is LORA else 0)
    if policy is LORA:  # with a frozen embedding, the first layer's projections need no gradient of their input
        layer = model.get_base_model().model.layers[0].self_attn
        projections = (layer.q_proj, layer.k_proj, layer.v_proj)
        outputs = sum(projection.out_features + policy.lora_r for projection in projections)
        expected -= 2 * work.tokens * layer.q_proj.in_features * outputs
    assert backward.get_total_flops() == expected


def test_peak_flops_are_told_for_known_devices_only():
    assert peak_flops(torch.device("cpu")) is None
    tera = {
        "NVIDIA A100-SXM4-80GB": 312.0,
        "NVIDIA H100 80GB HBM3": 989.4,
        "NVIDIA H100 PCIe": 756.5,
        "NVIDIA H200": 989.4,
        "NVIDIA L4": 121.0,
        "NVIDIA L40S": 362.0,
        "NVIDIA GeForce RTX 3090 Ti": 80.0,
        "NVIDIA GeForce RTX 3090": 71.0,
    }
    assert {name: peak_flops_of(name) for name in tera} == {name: value * 1e12 for name, value in tera.items()}
    for unknown in ("NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA RTX A4000", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"):
        assert peak_flops_of(unknown) is None


def test_a_fit_logs_every_part_once_a_phase_and_the_parts_add_up(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="lightning.pytorch")
    main(["fit", "-c", saved(tmp_path, {"model.init_args.zero_variance": "keep"})])
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    (row,) = [row for row in rows if row["time/phase"]]
    seconds = {name: float(row[f"time/{name}"]) for name in (*PARTS, "other", "phase")}
    assert sum(seconds.values()) == pytest.approx(2 * seconds["phase"], rel=1e-5)
    assert min(seconds[name] for name in ("prefill", "decode", "old", "reference", "forward", "backward", "step")) > 0
    for name in ("update_tokens_per_second", "update_tflops", "rollout_tflops", "peak_memory_gib"):
        assert float(row[f"perf/{name}"]) > 0
    assert "perf/update_mfu" not in row, "a CPU has no utilisation to state"
    assert "phase 0 took" in caplog.text


def test_the_line_leaves_out_what_took_no_time_and_states_utilisation_where_it_is_known():
    seconds = dict.fromkeys((*PARTS, "other"), 0.0) | {"decode": 3.0, "other": 1.0, "phase": 4.0}
    metrics = {f"time/{name}": value for name, value in seconds.items()} | {"perf/peak_memory_gib": 1.5}
    assert performance_line(2, metrics) == "phase 2 took 4.0 s: decode 3.0, other 1.0; peak memory 1.50 GiB"
    metrics |= {"perf/update_tokens_per_second": 1234.5, "perf/update_tflops": 2.0, "perf/update_mfu": 0.413}
    assert "update 1,234 tokens/s, 2.00 TFLOP/s (41% of the device)" in performance_line(2, metrics)
