"""Phases at the edge of what a phase can be: every step is taken, figures are finite, what is left out is counted."""

import logging
import os
import tempfile
import warnings

import torch
from hand_made import FULL, STILL
from test_degenerate_phases import NoTools, Silent, assert_finite, fit, logged

from faults.repeated import expect, repeated
from pact_lightning.policy.loading import load_policy
from pact_lightning.tasks.bundled.tasks import BundledTasks

SECTION = "Degenerate phases"
_FIGURES = ("rollout/empty", "train/zero_variance", "train/single_rollout", "anchor/no_trace", "rollout/no_call")


def run(times):
    """Each kind of phase in a fit of its own, so at most five times."""
    return [
        repeated(SECTION, name, min(times, 5), lambda number, made=made: _fit(made, number)) for name, made in KINDS
    ]


class Overlong:
    """Bundled tasks, two of which have a prompt over the limit."""

    def __init__(self, first):
        self.first = first

    def load(self):
        tasks = BundledTasks("train", 4, start=self.first).load()
        for task in tasks[:2]:
            task.prompt.messages[-1]["content"] += " word" * 8000
        return tasks


def _tasks(number):
    return BundledTasks("train", 2, start=2 * number)


KINDS = (
    ("one rollout per prompt", lambda number: fit(_tasks(number), rollouts=1)),
    ("turns of one token", lambda number: fit(_tasks(number), rollouts=3, max_new_tokens_per_turn=1)),
    ("tasks without tools and traces", lambda number: fit(NoTools(), rollouts=2)),
    ("prompts over the limit", lambda number: fit(Overlong(4 * number), rollouts=2)),
    ("empty rollouts, and with them no variance", lambda number: fit(_tasks(number), rollouts=3, module=_silent(0.0))),
    ("nothing to learn from at all", lambda number: fit(_tasks(number), rollouts=3, module=_silent(1.0))),
)


def _silent(anchored):
    return Silent(policy=FULL, optimizer=STILL, anchor_probability=anchored)


def _fit(made, number):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    before = os.getcwd()  # noqa: PTH109  # runs leave their trajectories where they are started
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.chdir(folder)
        try:
            module = made(number)
        finally:
            os.chdir(before)
    if not any(module.recorded):
        whole = load_policy(FULL).state_dict()
        same = all(torch.equal(weight, whole[name]) for name, weight in module.model.state_dict().items())
        expect(len(module.recorded) == 2 and same, "weights changed without a gradient")
        return "no gradient in 2 of 2 steps, and the weights stay; the run goes on"
    assert_finite(module)
    found = logged(module)
    figures = [f"{name} {found[name]:.2g}" for name in _FIGURES if found.get(name)]
    left_out = sum(module.trainer.datamodule.left_out.values())
    if left_out:
        figures.append(f"{left_out} of 4 tasks left out")
    return f"2 of 2 steps, all figures finite; {', '.join(figures)}"
