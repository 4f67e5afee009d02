"""Nothing of an expert trace or a reference reaches a sampler, a log line of rollouts, or validation: every setting."""

import json
import logging
from contextlib import contextmanager
from dataclasses import replace

import lightning.pytorch as pl
import pytest
from hand_made import FULL
from shallow_policy import shallow_folder

from pact_lightning.rollout.engine import RolloutLimits
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.tasks.bundled.tools import BundledWorld
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.training.rollout_datamodule import RolloutDataModule
from pact_lightning.types.prompt import EnvironmentSpec
from pact_lightning.types.task import Reference, SubAnswer, Task
from pact_lightning.types.trace import Chunk, ChunkType, ExpertTrace, ExpertTurn

MARK = "Qzx"
"""How every canary begins; in no word of the bundled world."""


def canaries(value, name="task"):
    """The value with a canary of its own in place of every text, at any depth."""
    if isinstance(value, str):
        return f"{MARK}{name}Zqk"
    if isinstance(value, dict):
        return {canaries(key, f"{name}key"): canaries(inner, f"{name}{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(canaries(inner, f"{name}{number}") for number, inner in enumerate(value))
    return value


def planted_turn(turn, name):
    return ExpertTurn(
        tuple(Chunk(canaries(chunk.text, f"{name}chunk{n}"), chunk.type) for n, chunk in enumerate(turn.chunks)),
        tuple(
            {"name": call["name"], "arguments": canaries(call["arguments"], f"{name}argument")} for call in turn.calls
        ),
        canaries(turn.responses, f"{name}response"),
        turn.pattern,
        answer=canaries(turn.answer, f"{name}answer") if turn.answer else "",
    )


def planted(task):
    """A canary in every text of trace, reference, kind and metadata, but for tools' names; the prompt is as it was."""
    turns = tuple(planted_turn(turn, f"turn{number}") for number, turn in enumerate(task.trace.turns))
    final = ExpertTurn((Chunk(f"{MARK}finalthought", ChunkType.OTHER),), answer=f"{MARK}finalanswer")
    reference = Reference(
        f"{MARK}reference",
        tuple({"name": c["name"], "arguments": {f"{MARK}key": f"{MARK}value"}} for c in task.reference.calls),
        (SubAnswer(task.reference.sub_answers[0].tool, f"{MARK}found"),),
    )
    return Task(
        task.prompt, reference, ExpertTrace(turns, final, f"{MARK}source"), f"{MARK}kind", {f"{MARK}meta": f"{MARK}m"}
    )


class FailsAtTimes(BundledWorld):
    """Every way in which an environment makes the engine write a log line."""

    def reset(self, task, seed):
        super().reset(task, seed)
        self.sick = self._index % 3
        if self.sick == 1:
            raise ConnectionError("closed today")

    def reward(self):
        if self.sick == 2:
            raise ValueError("no reward today")
        return 0.0

    def close(self):
        raise OSError("the door is stuck")


class CanaryTasks:
    def __init__(self, split):
        self.split = split

    def load(self):
        tasks = [planted(task) for task in BundledTasks(self.split, 3).load()]
        return [replace(task, prompt=replace(task.prompt, environment=self._spec(task))) for task in tasks]

    @staticmethod
    def _spec(task):
        return EnvironmentSpec(f"{__name__}.FailsAtTimes", dict(task.prompt.environment.init_args))


def canary_data():
    """A phase of three prompts, and a validation, all of them with canaries."""
    return RolloutDataModule(
        train=CanaryTasks("train"),
        validation=CanaryTasks("validation"),
        prompts_per_phase=3,
        prompts_per_step=3,
        rollouts_per_prompt=2,
        limits=RolloutLimits(max_new_tokens_per_turn=24, max_trajectory_tokens=200),
        max_prompt_tokens=2000,
    )


class Recorder:
    def __init__(self, sampler, given):
        self.sampler, self.given = sampler, given
        self.step, self.release = sampler.step, sampler.release

    def submit(self, requests):
        self.given += [(list(request.new_ids), request.shared_prompt) for request in requests]
        self.sampler.submit(requests)


class Recorded(PACTModule):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.given = []
        self.scored = 0

    @contextmanager
    def sampler(self, sampling, prefill_tokens):
        with super().sampler(sampling, prefill_tokens) as sampler:
            yield Recorder(sampler, self.given)

    def prepare_phase(self, groups, optimizer_steps):
        super().prepare_phase(groups, optimizer_steps)
        self.scored += sum(MARK in chunk.text for g in groups for turn in g.task.trace.turns for chunk in turn.chunks)


SETTINGS = [
    {"trace_template": template, "trace_context": context, "ratio_context": "trace", "packing": "shared_prefix"}
    for template in ("turns", "user_block", "system_block")
    for context in ("full", "safe", "follow")
]
SETTINGS += [
    {"ratio_context": "cross"},
    {"ratio_context": "prompt"},
    {"packing": "rows", "zero_variance": "keep"},
    {"supervise_delimiters": True, "sft_normalizer": "token_count"},
]


@pytest.mark.parametrize("chosen", SETTINGS, ids=lambda chosen: "-".join(map(str, chosen.values())))
@pytest.mark.filterwarnings("ignore:close")
def test_no_canary_leaves_the_update(tmp_path, caplog, capfd, recwarn, chosen):
    """A phase, a validation before and after it; then the sampler's input, logs, warnings, output and all files."""
    module = Recorded(policy=replace(FULL, model=shallow_folder()), anchor_probability=0.0, **chosen)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=pl.loggers.CSVLogger(tmp_path),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=-1,
        default_root_dir=tmp_path,
    )
    with caplog.at_level(logging.DEBUG):
        trainer.fit(module, canary_data())
    decode = module.renderer.codec.decode
    given = [decode(ids) for ids, _ in module.given]
    assert module.scored > 0, "the traces were trained on, canaries and all"
    assert len(given) >= 3
    assert "the door is stuck" in caplog.text
    assert MARK not in "\n".join(given)
    assert not any(MARK in str(shared) for _, shared in module.given)
    assert MARK not in caplog.text
    assert MARK not in "".join(capfd.readouterr())
    assert not [warning for warning in recwarn if MARK in str(warning.message)]
    files = [path for path in tmp_path.rglob("*") if path.suffix in (".jsonl", ".csv", ".yaml")]
    trajectories = [path for path in files if path.suffix == ".jsonl"]
    assert len(trajectories) >= 2
    for path in files:
        text = path.read_text()
        if path in trajectories:
            # A kind is a label that the user gives, and the record keeps it; all else of it is the rollout's own.
            records = [json.loads(line) for line in text.splitlines()]
            assert {record.pop("kind") for record in records} == {f"{MARK}kind"}
            text = json.dumps(records, ensure_ascii=False)
        assert MARK not in text.replace(f"{MARK}kind", ""), path
