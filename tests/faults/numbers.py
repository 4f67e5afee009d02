"""NaN and infinity in losses, gradients and rewards: the step is skipped, and too many in a row end the run saved."""

import tempfile
from functools import partial
from pathlib import Path

import torch
from hand_made import FULL, Batches, RecordingModule, attempts, bundled_renderer, hand_made_group, quiet_trainer

from faults.repeated import expect, repeated
from pact_lightning.credit.group import CreditConfig, make_group
from pact_lightning.tasks.bundled.tasks import make_task
from pact_lightning.update.optimizer import NonFiniteGradientError, OptimizerConfig

SECTION = "Numbers"
LIMIT = 3
_RENDERER = bundled_renderer()
_BAD = {"NaN": float("nan"), "infinity": float("inf")}


class Sick(RecordingModule):
    """Puts a number where it does harm, in given steps.

    Args:
        where: ``loss`` or ``gradient``; anything else does no harm.
        value: The number.
        steps: Numbers of the batches.
    """

    def __init__(self, where, value, steps):
        optimizer = OptimizerConfig(learning_rate=1e-3, max_skipped_steps=LIMIT)
        super().__init__(policy=FULL, optimizer=optimizer, anchor_probability=0.0)
        self.where, self.value, self.steps = where, value, steps

    def _sick(self, where):
        return self.where == where and len(self.recorded) in self.steps

    def _pack_loss(self, *arguments):
        loss = super()._pack_loss(*arguments)
        return loss * self.value if self._sick("loss") else loss

    def apply_gradients(self):
        if self._sick("gradient"):
            weights = [weight for weight in self.model.parameters() if weight.grad is not None]
            weights[len(self.recorded) % len(weights)].grad.view(-1)[0] = self.value
        return super().apply_gradients()


def run(times):
    """Each fault in a fit of its own, so at most five times."""
    times = min(times, 5)
    rows = [
        (f"{name} in the {where}", partial(_skipped, where, value))
        for where in ("loss", "gradient", "advantages")
        for name, value in _BAD.items()
    ]
    rows.append((f"NaN in {LIMIT} steps in a row", _stopped))
    rows += [(f"a reward function that gives {name}", partial(_refused, value)) for name, value in _BAD.items()]
    return [repeated(SECTION, name, times, inject) for name, inject in rows]


def _groups(count, bad=(), value=0.0):
    """Batches of one group; in those of ``bad`` an advantage is the value."""
    groups = [hand_made_group(_RENDERER, number) for number in range(count)]
    for number in bad:
        groups[number].advantages[0][0] = value
    return groups


def _fit(folder, module, groups):
    module.configure_model()
    for group in groups:
        module.prepare_phase([group], optimizer_steps=1)
    quiet_trainer(max_epochs=1, default_root_dir=folder).fit(module, Batches([[group] for group in groups]))
    return module


def _skipped(where, value, number):
    """A bad step among good ones: as if it had not been."""
    bad = number % 3
    with tempfile.TemporaryDirectory() as folder:
        whole = _fit(Path(folder), Sick(where, value, {bad}), _groups(3, {bad} if where == "advantages" else (), value))
        expected = _fit(
            Path(folder),
            Sick("nowhere", 0.0, ()),
            [group for place, group in enumerate(_groups(3)) if place != bad],
        )
    expect(whole.finite_steps.skipped == 1, f"{whole.finite_steps.skipped} steps were skipped")
    expect(whole.global_step == 2, f"{whole.global_step} steps were taken")
    state, other = whole.state_dict(), expected.state_dict()
    expect(all(torch.equal(state[name], other[name]) for name in other), "the weights are not those without that step")
    return "1 of 3 steps skipped and counted; weights bit for bit those of a run without that step"


def _stopped(number):
    """A good step, then nothing but bad ones."""
    del number
    with tempfile.TemporaryDirectory() as folder:
        module = Sick("gradient", float("nan"), range(1, 1 + LIMIT))
        try:
            _fit(Path(folder), module, _groups(2 + LIMIT))
        except NonFiniteGradientError:
            saved = torch.load(Path(folder) / "checkpoints" / "last-stopped.ckpt", weights_only=True)["state_dict"]
        else:
            expect(False, "the run did not stop")
    one = _fit(Path(tempfile.gettempdir()), Sick("nowhere", 0.0, ()), _groups(1)).state_dict()
    expect(all(torch.equal(saved[name], one[name]) for name in one), "the saved weights are not those of the good step")
    return "the run stopped with a sentence; saved are the weights of the last good step"


def _refused(value, number):
    """A reward of the user's own, which is told with its task before it reaches a loss."""
    task = make_task("train", number)
    try:
        make_group(task, attempts(_RENDERER, task), CreditConfig(reward=f"{__name__}.Pays", reward_args={"pay": value}))
    except ValueError as error:
        expect(task.id in str(error) and "finite" in str(error), f"the error says only: {error}")
        return "refused, with the task and what the function gave"
    return expect(False, "it was taken")


class Pays:
    """A reward that pays the same for every turn."""

    def __init__(self, pay):
        self.pay = pay

    def __call__(self, trajectory, task):
        return [self.pay] * len(trajectory.turns)
