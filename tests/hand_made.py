"""Hand-made rollouts and groups for tests of what comes after the rollouts, and a fit on them without any sampling."""

import warnings
from tempfile import TemporaryDirectory

import lightning.pytorch as pl
import torch

from pact_lightning.credit.group import CreditConfig, make_group
from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.policy.loading import PolicyConfig, load_tokenizer
from pact_lightning.tasks.bundled.tasks import make_task
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.types.trajectory import Component, Segment, StopReason, Trajectory
from pact_lightning.update.optimizer import OptimizerConfig

FULL = PolicyConfig(adapter="full", dtype="float32")
STILL = OptimizerConfig(learning_rate=1e-30, weight_decay=0.0)
LORA = PolicyConfig(adapter="lora", dtype="float32", lora_r=4, lora_alpha=8)


def bundled_renderer():
    return ChatRenderer(TextCodec(load_tokenizer(FULL)))


def written(renderer, task, sample, turns):
    """A trajectory as if the policy had written ``turns``: (reasoning, calls, responses), and (reasoning, answer)."""
    trajectory = Trajectory(task.id, sample, tuple(renderer.prompt(task.prompt.messages, task.prompt.tools)))
    trajectory.stop_reason = StopReason.MAX_TURNS
    for number, turn in enumerate(turns):
        if len(turn) == 2:
            reasoning, answer = turn
            rendered, responses = renderer.expert_turn(reasoning, (), answer), ()
            trajectory.stop_reason = StopReason.ANSWERED
        else:
            reasoning, calls, responses = turn
            rendered = renderer.expert_turn(reasoning, calls)
        ids = rendered.ids.tolist()
        trajectory.segments += renderer.turn_segments(ids, number)
        trajectory.turns.append(renderer.read_turn(ids))
        trajectory.sampled_logps += [-0.5] * len(ids)
        if responses and number + 1 < len(turns):
            observation = tuple(renderer.observation(responses))
            trajectory.segments.append(Segment(observation, Component.OBSERVATION, number))
    return trajectory


def attempts(renderer, task):
    """Three rollouts of unequal worth and length: the expert's way, a wrong start, an answer out of nowhere."""
    first = task.trace.turns[0]
    right = task.reference.answer
    good = [(turn.reasoning, turn.calls, turn.responses) for turn in task.trace.turns]
    wrong_call = {"name": first.calls[0]["name"], "arguments": {"nobody": "asked"}}
    return [
        written(renderer, task, 0, [*good[:2], ("So it is.", f"<answer>{right}</answer>")]),
        written(renderer, task, 1, [("Try.", (wrong_call,), ('{"error": "unknown argument"}',)), ("", "no idea")]),
        written(renderer, task, 2, [("", "<answer>who knows</answer>")]),
    ]


def hand_made_group(renderer, index=0, **changes):
    """A group of three rollouts of a bundled training task."""
    task = make_task("train", index)
    group = make_group(task, attempts(renderer, task), CreditConfig(), position=index)
    for name, value in changes.items():
        setattr(group, name, value)
    return group


class RecordingModule(PACTModule):
    """Keeps the gradient of every optimiser step and what was logged."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.recorded = []
        self.logged = []

    def apply_gradients(self):
        named = self.model.named_parameters()
        self.recorded.append({name: weight.grad.clone() for name, weight in named if weight.grad is not None})
        return super().apply_gradients()

    def log_dict(self, dictionary, **arguments):
        self.logged.append(dict(dictionary))
        super().log_dict(dictionary, **arguments)


class Loader:
    """A list of batches that Lightning does not take for a collection of loaders."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


class Batches(pl.LightningDataModule):
    """Given batches, as they are."""

    def __init__(self, batches):
        super().__init__()
        self.loader = Loader(batches)

    def train_dataloader(self):
        return self.loader

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch


_FOLDERS = []


def quiet_trainer(**settings):
    """A Trainer, on the CPU unless told otherwise, that leaves nothing behind but what it is told to."""
    warnings.filterwarnings("ignore", module="lightning")
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    if "default_root_dir" not in settings:
        _FOLDERS.append(TemporaryDirectory())  # two runs in one folder are refused
        settings["default_root_dir"] = _FOLDERS[-1].name
    return pl.Trainer(**({"accelerator": "cpu"} | quiet | settings))


def prepared(policy=FULL, shift=0.0, **arguments):
    """A module with its policy loaded, and moved away from its reference by ``shift``."""
    module = RecordingModule(policy=policy, **({"optimizer": STILL} | arguments))
    module.configure_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.model.parameters():
            if weight.requires_grad and shift:
                weight.add_(torch.randn(weight.shape, generator=generator).to(weight.device), alpha=shift)
    return module


def fit_steps(module, *batches):
    """One optimiser step per batch of groups; returns the gradient of each."""
    quiet_trainer(max_epochs=1).fit(module, Batches(list(batches)))
    return module.recorded


def gradients(module, *groups):
    """The gradient of one optimiser step on the groups."""
    (recorded,) = fit_steps(module, list(groups))
    return recorded
