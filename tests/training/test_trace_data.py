"""Supervised training on whole traces: the loss of a step, and the batches it comes in."""

from dataclasses import replace

import pytest
import torch
from hand_made import FULL, STILL, Batches, bundled_renderer, quiet_trainer

from pact_lightning.policy.loading import load_policy
from pact_lightning.tasks.bundled.tasks import BundledTasks, make_task
from pact_lightning.traces.tokens import render_trace
from pact_lightning.training.sft_module import SFTModule
from pact_lightning.training.trace_datamodule import TraceBatches, TraceDataModule
from pact_lightning.types.trajectory import Component

RENDERER = bundled_renderer()


class RecordingSFT(SFTModule):
    """Keeps the gradient of every step and what was logged."""

    def apply_gradients(self):
        self.recorded = {name: weight.grad.clone() for name, weight in self.model.named_parameters()}
        return super().apply_gradients()

    def log_dict(self, dictionary, **arguments):
        self.logged = dict(dictionary)
        super().log_dict(dictionary, **arguments)


def one_step(tasks, **settings):
    module = RecordingSFT(policy=FULL, optimizer=STILL, **settings)
    quiet_trainer(max_epochs=1).fit(module, Batches([tasks]))
    return module


def plain_loss(model, task, with_answer):
    """Mean negative log-likelihood of what the expert wrote, the observations left out."""
    prompt = RENDERER.prompt(task.prompt.messages, task.prompt.tools)
    trace = render_trace(RENDERER, task.trace, with_final=with_answer)
    row = torch.tensor([[*prompt, *trace.ids.tolist()]])
    logp = model(row).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    wrote = torch.from_numpy(trace.components != Component.OBSERVATION)
    return -logp.gather(-1, torch.from_numpy(trace.ids)[:, None])[wrote].mean()


@pytest.mark.parametrize("with_answer", [True, False])
@pytest.mark.parametrize("limit", [100_000, 420, 100])
def test_a_step_is_the_mean_over_traces_of_the_mean_over_what_the_expert_wrote(with_answer, limit):
    tasks = [make_task("train", index) for index in (1, 3, 4)]
    model = load_policy(replace(FULL, attn_implementation="eager"))
    loss = sum(plain_loss(model, task, with_answer) for task in tasks) / 3
    loss.backward()
    module = one_step(tasks, with_answer=with_answer, max_tokens_per_forward=limit)
    assert module.logged["sft/loss"] == pytest.approx(loss.item(), abs=1e-4)
    expected = {name: weight.grad for name, weight in model.named_parameters()}
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-2
    torch.testing.assert_close(module.recorded, expected, rtol=1e-4, atol=1e-5)


def test_a_task_without_a_trace_is_named():
    task = replace(make_task("train", 1), trace=None)
    with pytest.raises(ValueError, match="task train-1 has no expert trace to learn from"):
        one_step([task])


def test_supervised_training_keeps_no_second_copy_of_the_weights():
    assert one_step([make_task("train", 3)]).reference_copy is None


def ids_by_epoch(seed, epochs=2, count=10, batch_size=3):
    seen = []

    class Watching(SFTModule):
        def training_step(self, batch, batch_idx):
            seen.append((self.trainer.current_epoch, [task.id for task in batch]))

    data = TraceDataModule(train=BundledTasks("train", count), batch_size=batch_size, seed=seed)
    quiet_trainer(max_epochs=epochs).fit(Watching(policy=FULL, optimizer=STILL), data)
    return seen


def test_the_order_depends_on_seed_and_epoch_alone():
    seen = ids_by_epoch(seed=0)
    assert seen == ids_by_epoch(seed=0)
    assert seen != ids_by_epoch(seed=1)
    for epoch in (0, 1):
        batches = [batch for at, batch in seen if at == epoch]
        assert [len(batch) for batch in batches] == [3, 3, 3], "the smaller last batch is dropped"
        assert len({task_id for batch in batches for task_id in batch}) == 9
    assert [batch for at, batch in seen if at == 0] != [batch for at, batch in seen if at == 1]


def test_batches_can_be_looked_at_without_a_trainer():
    tasks = BundledTasks("train", 4).load()
    batches = list(TraceBatches(tasks, 2, seed=0))
    assert sorted(task.id for batch in batches for task in batch) == sorted(task.id for task in tasks)


class SomeWithoutTrace(BundledTasks):
    """Every second task has lost its trace."""

    def load(self):
        return [replace(task, trace=None) if n % 2 else task for n, task in enumerate(super().load())]


def fit(data):
    quiet_trainer(max_epochs=1).fit(SFTModule(policy=FULL, optimizer=STILL), data)


def test_tasks_without_a_trace_are_left_out():
    data = TraceDataModule(train=SomeWithoutTrace("train", 6), batch_size=3)
    fit(data)
    assert [task.id for task in data.train_dataloader().tasks] == ["train-0", "train-2", "train-4"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"train": SomeWithoutTrace("train", 6), "batch_size": 4}, r"only 3 of 6 training tasks have an expert trace"),
        ({}, r"there are no training tasks; set data.train"),
        (
            {"train": BundledTasks("train", 6), "max_prompt_tokens": 20},
            r"no train task is left: none of 6 has a prompt",
        ),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        fit(TraceDataModule(**arguments))


def test_a_batch_size_of_0_is_refused():
    with pytest.raises(ValueError, match=r"data.batch_size must be at least 1, not 0"):
        TraceDataModule(batch_size=0)
