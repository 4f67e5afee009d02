"""Rollouts that see the trace, for rivals alone: pi-Distill and hints against their formulas, and a small fit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_made import FULL, gradients, hand_made_group, prepared, quiet_trainer
from plain_pact import RENDERER, Plain
from small_run import POLICY

from pact_lightning.objectives.objective import Objective
from pact_lightning.objectives.pact import Coefficients
from pact_lightning.objectives.pi_distill import PiDistill
from pact_lightning.rollout.engine import RolloutLimits
from pact_lightning.rollout.runner import RolloutRunner
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.training.rollout_datamodule import RolloutDataModule

ALONE = Coefficients(sft=0.0, kl=0.0, entropy=0.0)
MARK = "<expert_trace>"


def prompt_of(group):
    return np.array(RENDERER.prompt(group.task.prompt.messages, group.task.prompt.tools))


def sampled_with_the_trace(module, samples):
    """A group some of whose rollouts began with the trace in their prompt, and what they began with."""
    group = hand_made_group(RENDERER, 1, off_spec=samples)
    shown = module.contexts.sampled_with(group.task, 4, 300)
    context = np.array(RENDERER.prompt(shown.messages, shown.tools))
    for sample in samples:
        group.trajectories[sample].prompt_ids = tuple(context)
    return group, context


def module_of(objective, **settings):
    return prepared(
        FULL, 0.02, objective=objective, coefficients=ALONE, anchor_probability=1.0, trace_template="system_block",
        **settings,
    )  # fmt: skip


def surrogate(logp, old, advantage):
    ratio = (logp - old).exp()
    value = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    return -torch.where(advantage < 0, torch.max(value, 3.0 * advantage), value)


def k3(gap):
    return (-gap).exp() + gap - 1


def assert_same_gradient(found, expected):
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1e-2
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5 * max(1.0, largest))


@pytest.mark.parametrize("alpha", [0.3, 0.0, 1.0])
def test_pi_distill_trains_teacher_and_student_on_the_teachers_rollouts(alpha):
    module = module_of(PiDistill(alpha, 0.2))
    group, context = sampled_with_the_trace(module, (0, 1, 2))
    plain = Plain(module)
    before = [plain.logps(context, trajectory).detach() for trajectory in group.trajectories]
    module.prepare_phase([group], optimizer_steps=2)
    kept = [torch.from_numpy(trajectory.policy_mask()) for trajectory in group.trajectories]
    for sample, own in enumerate(kept):
        torch.testing.assert_close(group.old_logps[sample][own], before[sample], rtol=0, atol=2e-4)
    moved = [torch.linspace(-0.3, 0.3, len(logp)) for logp in before]  # as if the policy had changed since
    for sample, own in enumerate(kept):
        group.old_logps[sample][own] += moved[sample]
    losses = []
    for sample, trajectory in enumerate(group.trajectories):
        teacher, student = plain.logps(context, trajectory), plain.logps(prompt_of(group), trajectory)
        advantage, old = group.token_advantages(sample)[kept[sample]], before[sample] + moved[sample]
        of_teacher = surrogate(teacher, old, advantage) + 0.2 * k3((teacher - student.detach()).clamp(-10, 10))
        of_student = surrogate(student, old, advantage) + 0.2 * k3((teacher.detach() - student).clamp(-10, 10))
        losses.append((alpha * of_teacher + (1 - alpha) * of_student).mean())
    loss = torch.stack(losses).mean()
    assert_same_gradient(gradients(module, group), plain.gradient(loss))
    logged = module.logged[0]
    assert logged["train/loss"] == pytest.approx(loss.item(), rel=1e-3)
    assert logged["train/rl_loss"] == pytest.approx(loss.item(), rel=1e-3)  # of one prompt, whose rollouts count once
    assert logged["train/context_kl"] > 0


def test_the_student_divides_by_the_teacher_in_a_phase_of_one_step_too():
    module = module_of(PiDistill(0.5, 0.0))
    group, context = sampled_with_the_trace(module, (0, 1, 2))
    module.prepare_phase([group], optimizer_steps=1)
    (own,) = [torch.from_numpy(group.trajectories[0].policy_mask())]
    expected = Plain(module).logps(context, group.trajectories[0]).detach()
    torch.testing.assert_close(group.old_logps[0][own], expected, rtol=0, atol=2e-4)


def test_a_hinted_rollout_is_scored_under_what_it_saw_and_the_others_under_the_prompt():
    module = module_of(Objective())
    group, context = sampled_with_the_trace(module, (2,))
    plain, losses = Plain(module), []
    for sample, trajectory in enumerate(group.trajectories):
        logp = plain.logps(context if sample == 2 else prompt_of(group), trajectory)
        advantage = group.token_advantages(sample)[torch.from_numpy(trajectory.policy_mask())]
        losses.append(surrogate(logp, logp.detach(), advantage).mean())
    module.prepare_phase([group], optimizer_steps=1)
    assert_same_gradient(gradients(module, group), plain.gradient(torch.stack(losses).mean()))
    assert module.logged[0]["train/anchored"] == 1.0


@pytest.mark.parametrize(("alpha", "kl"), [(-0.1, 0.0), (1.1, 0.0), (0.5, -1.0), (0.5, float("inf"))])
def test_values_that_make_no_sense(alpha, kl):
    with pytest.raises(ValueError, match="pi-Distill needs alpha"):
        PiDistill(alpha, kl)


def data_of(share, **settings):
    limits = RolloutLimits(max_turns=2, max_new_tokens_per_turn=12, max_trajectory_tokens=100, rows=8)
    settings = {"prompts_per_phase": 2, "prompts_per_step": 1, "rollouts_per_prompt": 4, "limits": limits} | settings
    return RolloutDataModule(train=BundledTasks("train", 4), off_spec_share=share, max_prompt_tokens=600, **settings)


def test_a_share_of_the_rollouts_sees_the_trace_and_says_so(tmp_path, monkeypatch, recwarn):
    asked = []
    run = RolloutRunner.run

    def seen(self, requests, *given, **named):
        asked.extend(requests)
        return run(self, requests, *given, **named)

    monkeypatch.setattr(RolloutRunner, "run", seen)
    module = PACTModule(policy=POLICY, trace_template="user_block", max_tokens_per_forward=4096)
    trainer = quiet_trainer(max_epochs=1, default_root_dir=str(tmp_path))
    trainer.fit(module, data_of(0.25))
    shown = [MARK in json.dumps(request.prompt.messages) for request in asked]
    assert [(request.samples, own) for request, own in zip(asked, shown, strict=True)] == [(3, False), (1, True)] * 2
    (file,) = tmp_path.rglob("phase-0000.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record.get("off_spec", False) for record in records] == [False, False, False, True] * 2
    assert MARK not in file.read_text()  # the task's own prompt is what a record shows
    assert any("off-spec: 1 of 4 rollouts" in str(warning.message) for warning in recwarn)
    assert trainer.callback_metrics["rollout/off_spec"] == pytest.approx(0.25)


def test_mistakes():
    trainer = quiet_trainer(max_epochs=1)
    with pytest.raises(ValueError, match=r"model\.trace_template is 'turns'"):
        trainer.fit(PACTModule(policy=POLICY, max_tokens_per_forward=4096), data_of(0.5))
    with pytest.raises(ValueError, match="off_spec_share is a share"):
        data_of(1.5)
    with pytest.raises(ValueError, match="which is chosen after the rollouts"):
        data_of(0.5, trace_source="mismatched")


def test_the_overlays_say_in_their_names_that_they_are_off_spec():
    for file in (Path(__file__).parent.parent.parent / "recipes" / "methods").glob("*.yaml"):
        assert ("off_spec_share" in file.read_text()) == file.stem.endswith("_off_spec"), file.name
