"""Importance weights inside PACTModule: which prompts are weighted by what, and when nothing is."""

import math
from contextlib import contextmanager

import pytest
import torch
from hand_made import FULL, LORA, RecordingModule, gradients, hand_made_group, prepared, quiet_trainer
from plain_pact import RENDERER, Plain
from test_pact_module import assert_same

from pact_lightning.credit.group import CreditConfig
from pact_lightning.objectives.pact import Coefficients
from pact_lightning.rollout.engine import RolloutLimits
from pact_lightning.rollout.samplers.transformers_sampler import TransformersSampler
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.training.rollout_datamodule import RolloutDataModule

ONLY_RL = Coefficients(sft=0.0, kl=0.0, entropy=0.0)
SHIFT = 0.02
CAP = 1.5


class ItsOwnSampler:
    """A backend that lends the policy itself, as a custom class would stand in a recipe."""

    def __init__(self, off_by=0.0):
        self.off_by = off_by
        self.checked = []

    def check(self, config):
        self.checked.append(config)

    @contextmanager
    def lend(self, policy, sampling):
        sampler = TransformersSampler(policy.model, policy.stop_ids, sampling)
        step = sampler.step

        def shifted():
            outputs = step()
            for output in outputs:
                output.logps = [logp - self.off_by for logp in output.logps]
            return outputs

        sampler.step = shifted
        yield sampler


def sampled_elsewhere(plain, anchored, seed=0):
    """A group whose sampler gave its tokens other probabilities than the trainer does."""
    group = hand_made_group(RENDERER, 1, anchored=anchored)
    generator = torch.Generator().manual_seed(seed)
    for sample, trajectory in enumerate(group.trajectories):
        logp = under_prompt(plain, group, sample)
        off = 0.6 * torch.randn(len(logp), generator=generator)
        trajectory.sampled_logps = (logp + off).tolist()
    return group


def under_prompt(plain, group, sample):
    """Log-probabilities of a rollout's policy tokens under the prompt alone, densely."""
    ids, mask = group.trajectories[sample].ids(), group.policy_mask(sample)
    with torch.no_grad():
        dense = plain.distribution(plain.prompt(group), ids)
    return dense[torch.arange(len(ids)), torch.from_numpy(ids)][mask]


def weighted_loss(plain, group, context):
    """Token by token: weight times ratio times advantage; the ratio of a first step is 1."""
    losses, all_weights = [], []
    for sample, trajectory in enumerate(group.trajectories):
        ids, mask = trajectory.ids(), group.policy_mask(sample)
        logp = plain.distribution(context, ids)[torch.arange(len(ids)), torch.from_numpy(ids)][mask]
        sampled = torch.tensor(trajectory.sampled_logps)
        weights = (under_prompt(plain, group, sample) - sampled).exp().clamp(max=CAP)
        ratio = (logp - logp.detach()).exp()
        losses.append(-(weights * ratio * group.token_advantages(sample)[mask]).mean())
        all_weights.append(weights)
    return torch.stack(losses).mean(), torch.cat(all_weights)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("anchored", [None, "drawn"])
@pytest.mark.parametrize("tokens", [100_000, 700], ids=["one pack", "packs"])
def test_every_token_is_weighted_by_what_the_trainer_and_the_sampler_gave_it_under_the_prompt(anchored, steps, tokens):
    """Of trace prompts too: what was sampled from is the prompt's distribution, whatever the ratio's context."""
    settings = {"anchor_probability": 0.0, "coefficients": ONLY_RL, "max_tokens_per_forward": tokens}
    module = prepared(FULL, SHIFT, importance_cap=CAP, **settings)
    plain = Plain(module)
    group = sampled_elsewhere(plain, anchored)
    module.prepare_phase([group], optimizer_steps=steps)
    assert (group.prompt_logps is None) == (anchored is not None), "an anchor's are those of its ratio"
    loss, weights = weighted_loss(plain, group, plain.privileged(group) if anchored is None else plain.prompt(group))
    assert (weights == CAP).any()
    assert (weights < 1).any()
    assert_same(gradients(module, group), plain.gradient(loss))
    logged = module.logged[0]
    assert logged["mismatch/capped"] > 0
    assert logged["mismatch/abs_difference"] == pytest.approx(0.48, abs=0.1)  # of a normal with deviation 0.6
    assert logged["mismatch/ratio_max"] > CAP
    assert logged["mismatch/kl"] > 0.05


@pytest.mark.parametrize("ratio_context", ["prompt", "cross"])
def test_where_the_denominator_is_under_the_prompt_no_further_forward_is_made(ratio_context):
    module = prepared(FULL, SHIFT, anchor_probability=0.0, ratio_context=ratio_context, importance_cap=CAP)
    group = sampled_elsewhere(Plain(module), None)
    module.prepare_phase([group], optimizer_steps=2)
    assert group.prompt_logps is None
    gradients(module, group)
    assert module.logged[0]["mismatch/capped"] > 0


def test_by_default_anchors_are_measured_and_nothing_is_corrected():
    modules = [prepared(FULL, SHIFT, coefficients=ONLY_RL, anchor_probability=0.0) for _ in range(3)]
    plain = Plain(modules[0])
    assert modules[0].importance_cap is None
    off, right, traced = (sampled_elsewhere(plain, anchored) for anchored in ("drawn", "drawn", None))
    for sample, trajectory in enumerate(right.trajectories):
        trajectory.sampled_logps = under_prompt(plain, right, sample).tolist()
    for module, group in zip(modules, (off, right, traced), strict=True):
        module.prepare_phase([group], optimizer_steps=1)
        assert group.prompt_logps is None
    assert_same(gradients(modules[0], off), gradients(modules[1], right), rtol=0, atol=0)
    assert modules[0].logged[0]["mismatch/abs_difference"] > 0.3
    assert modules[1].logged[0]["mismatch/abs_difference"] < 1e-5
    assert "mismatch/capped" not in modules[0].logged[0]
    gradients(modules[2], traced)
    assert math.isnan(modules[2].logged[0]["mismatch/abs_difference"]), "it would take a forward of its own"


def long_is_good(trajectory, task):
    """A reward that tells the rollouts of a short phase apart."""
    return [float(len(turn.text)) for turn in trajectory.turns]


def fitted(sampler, folder, *, phases=1, overlap=False, **settings):
    """Phases of real rollouts and one optimiser step each, through the Trainer."""
    module = RecordingModule(policy=LORA, anchor_probability=0.5, sampler=sampler, **settings)
    limits = RolloutLimits(max_new_tokens_per_turn=24, max_trajectory_tokens=300)
    data = RolloutDataModule(
        train=BundledTasks("train", 4),
        prompts_per_phase=4,
        prompts_per_step=4,
        rollouts_per_prompt=3,
        overlap=overlap,
        limits=limits,
        max_prompt_tokens=2000,
        credit=CreditConfig(reward=f"{__name__}.long_is_good"),
    )
    quiet_trainer(max_epochs=phases, default_root_dir=folder).fit(module, data)
    return module


def measured(logged):
    """Whether these are the figures of a step in which the sampler was measured."""
    return not math.isnan(logged.get("mismatch/ratio_max", math.nan))


def test_a_sampler_that_is_the_trainer_is_corrected_by_weights_of_1(tmp_path):
    """Through the Trainer, with real rollouts: in float32 a cap changes the gradient by rounding alone."""
    backend = ItsOwnSampler()
    with_cap, without = fitted(backend, tmp_path), fitted(None, tmp_path)
    assert backend.checked == [LORA]
    assert with_cap.importance_cap == 2.0
    logged = next(logged for logged in with_cap.logged if measured(logged))
    assert logged["mismatch/ratio_max"] == pytest.approx(1.0, abs=1e-4)
    assert logged["mismatch/weight_mean"] == pytest.approx(1.0, abs=1e-5)
    assert logged["mismatch/abs_difference"] < 1e-5
    assert_same(with_cap.recorded[0], without.recorded[0])


def test_a_sampler_that_is_off_is_measured_through_the_trainer(tmp_path):
    module = fitted(ItsOwnSampler(off_by=0.1), tmp_path)
    logged = next(logged for logged in module.logged if measured(logged))
    assert logged["mismatch/abs_difference"] == pytest.approx(0.1, abs=1e-4)
    assert logged["mismatch/weight_mean"] == pytest.approx(1.1052, abs=1e-3)


def test_a_rollout_without_the_samplers_log_probabilities_is_told():
    module = prepared(FULL, importance_cap=2.0)
    group = hand_made_group(RENDERER, 1, anchored="drawn")
    group.trajectories[1].sampled_logps.pop()
    with pytest.raises(ValueError, match=r"rollout 1 of task .* policy tokens and .* log-probabilities of its sampler"):
        gradients(module, group)


def test_rollouts_that_no_sampler_made_are_not_measured():
    module = prepared(FULL, anchor_probability=1.0)
    group = hand_made_group(RENDERER, 1, anchored="drawn")
    for trajectory in group.trajectories:
        trajectory.sampled_logps = []
    assert gradients(module, group)
    assert all(math.isnan(value) for name, value in module.logged[0].items() if name.startswith("mismatch/"))


def test_a_cap_below_1_is_refused():
    with pytest.raises(ValueError, match="importance_cap must be at least 1"):
        PACTModule(policy=FULL, importance_cap=0.9)
