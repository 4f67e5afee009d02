"""A whole optimiser step against METHOD.md, written out once more: from rewards to loss and gradient, in float64."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from hand_made import FULL, LORA, attempts, fit_steps, prepared
from plain_pact import RENDERER, Method, Plain

from pact_lightning.credit.group import CreditConfig, make_group
from pact_lightning.objectives.pact import Coefficients
from pact_lightning.tasks.bundled.tasks import make_task

REWARDS = {
    "train-1": [[0.5, 0.25, 1.0], [0.0, 0.2], [0.1]],  # worked on by its trace
    "train-2": [[1.0, 0.0, 0.5], [0.3, 0.0], [0.9]],  # anchored
    "train-11": [[0.1, 0.2, 0.0], [0.1 + 0.2, 0.0], [0.3]],  # equal sums, earned in different turns
    "train-4": [[0.3, 0.0, 0.0], [0.3, 0.0], [0.3]],  # no advantage at all
    "train-5": [[4.0, 1.0, 1.0]],  # one rollout is left
    "train-8": [[0.0, 0.0, 0.0], [1.0, 0.0], [0.5]],  # no trace
    "train-9": [[0.7, 0.0, 0.0], [0.7, 0.0], [0.7]],  # anchored, and no advantage at all
}
COEFFICIENTS = Coefficients(sft=0.3, kl=0.05, entropy=0.02)
BASE = Method(beta=0.3, kl=0.05, entropy=0.02)


def given_rewards(trajectory, task):
    return REWARDS[task.id][trajectory.sample]


def groups_of(temperature):
    """A step's prompts, one of each kind."""
    groups = []
    for position, (name, rewards) in enumerate(REWARDS.items()):
        task = make_task("train", int(name.removeprefix("train-")))
        assert task.id == name
        system, user = task.prompt.messages
        short = (dict(system, content="Use tools."), user)  # the fewer tokens, the faster
        task = replace(task, prompt=replace(task.prompt, messages=short, tools=task.prompt.tools[:1]))
        rollouts = attempts(RENDERER, task)[: len(rewards)]
        if name == "train-8":
            task = replace(task, trace=None)
        credit = CreditConfig(reward=f"{__name__}.given_rewards")
        groups.append(make_group(task, rollouts, credit, temperature=temperature, position=position))
    groups[1].anchored = groups[6].anchored = "drawn"
    return groups


def in_float64(policy, method, **settings):
    module = prepared(
        policy,
        0.02,
        anchor_probability=0.0,
        coefficients=COEFFICIENTS,
        level=method.level,
        tool_call_scale=method.scale,
        sft_normalizer=method.normalizer,
        supervise_delimiters=method.delimiters,
        trace_template=method.template,
        ratio_context=method.ratio_context,
        zero_variance="keep" if method.keep_zero_variance else "drop",
        **settings,
    )
    for model in (module.model, module.reference_copy):
        if model is not None:
            model.double()
    return module


def move(model, size):
    """An optimiser step of another batch, as far as this one is concerned: the ratio is no longer 1."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=size)


def check_step(policy, temperature, method, **settings):
    module = in_float64(policy, method, **settings)
    groups = groups_of(temperature)
    module.prepare_phase(groups, optimizer_steps=2)
    plain = Plain(module, temperature, torch.float64)
    old = [plain.denominators(group, method) for group in groups]
    move(module.model, 0.03 if policy is FULL else 0.1)
    plain.take_weights()
    loss = 0.0
    for group, before in zip(groups, old, strict=True):  # one graph at a time
        of_prompt = plain.loss(group, REWARDS[group.task.id], before, method)
        if of_prompt is not None:
            (of_prompt / len(groups)).backward()
            loss += of_prompt.item() / len(groups)
    expected = plain.gradients()
    (found,) = fit_steps(module, groups)
    logged = module.logged[0]
    assert logged["train/loss"] == pytest.approx(loss, rel=1e-5)
    assert found.keys() == expected.keys()
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-2
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float64
        # Eager attention takes its softmax in float32: an element is known to a part of its tensor's largest.
        assert float((found[name] - gradient).abs().max()) <= 1e-5 * float(gradient.abs().max()), name
    assert min(logged[f"train/clip_{bound}"] for bound in ("low", "high", "dual")) > 0, "every bound is met"
    assert logged["train/single_rollout"] == pytest.approx(1 / 7)
    assert logged["train/zero_variance"] == pytest.approx(2 / 7)


TEMPLATES = ["turns", "user_block", "system_block"]
RATIO_CONTEXTS = ["trace", "prompt", "cross"]
OFTEN = [
    ("trace", "turns", 1.0),
    ("trace", "system_block", 0.7),
    ("prompt", "turns", 0.7),
    ("cross", "user_block", 0.7),
]
CASES = [
    pytest.param(*case, marks=() if case in OFTEN else pytest.mark.slow)
    for case in product(RATIO_CONTEXTS, TEMPLATES, (1.0, 0.7))
]


@pytest.mark.parametrize(("ratio_context", "template", "temperature"), CASES)
def test_a_step_is_what_the_method_says(ratio_context, template, temperature):
    """All kinds of prompts in one step; the smaller choices change from case to case."""
    number = RATIO_CONTEXTS.index(ratio_context) + TEMPLATES.index(template)
    method = replace(
        BASE,
        ratio_context=ratio_context,
        template=template,
        level=[4, 2, 0][number % 3],
        scale=[0.8, 0.35][number % 2],
        normalizer=["weight_sum", "token_count"][(number + (temperature == 1.0)) % 2],
        delimiters=number == 3,
        keep_zero_variance=number == 2,
    )
    check_step([FULL, LORA][number % 2], temperature, method)
