"""The first invariant: no byte of an expert trace or a reference ever reaches a sampler."""

import json
from contextlib import contextmanager
from dataclasses import replace

import lightning.pytorch as pl
import pytest
from vllm_protocol_server import ProtocolServer

from pact_lightning.policy.loading import PolicyConfig
from pact_lightning.rollout.engine import RolloutLimits
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.traces.tokens import render_trace
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.training.rollout_datamodule import RolloutDataModule
from pact_lightning.types.task import Reference
from pact_lightning.types.trace import Chunk, ExpertTrace, ExpertTurn

POLICY = PolicyConfig(model="bundled", adapter="full", dtype="float32")
CANARIES = {
    part: f"Qzx{part}Zqk" for part in ("thought", "argument", "response", "closing", "final", "answer", "found")
}


class CanaryTasks:
    """Bundled tasks with a canary in every part of the trace and in the reference."""

    def load(self):
        return [self._planted(task) for task in BundledTasks("train", 2).load()]

    @staticmethod
    def _planted(task):
        turns = tuple(
            ExpertTurn(
                (*turn.chunks, Chunk(f" {CANARIES['thought']}")),
                tuple(
                    {"name": c["name"], "arguments": c["arguments"] | {"x": CANARIES["argument"]}} for c in turn.calls
                ),
                tuple(f"{response} {CANARIES['response']}" for response in turn.responses),
                turn.pattern,
            )
            for turn in task.trace.turns
        )
        final = ExpertTurn((Chunk(CANARIES["closing"]),), answer=CANARIES["final"])
        sub_answers = tuple(sub._replace(answer=CANARIES["found"]) for sub in task.reference.sub_answers)
        reference = Reference(CANARIES["answer"], turns[0].calls, sub_answers)
        return replace(task, trace=ExpertTrace(turns, final), reference=reference)


class Recorder:
    """The real sampler, with everything it is given written down."""

    def __init__(self, sampler, given):
        self.sampler = sampler
        self.given = given
        self.step, self.release = sampler.step, sampler.release

    def submit(self, requests):
        self.given += [list(request.new_ids) for request in requests]
        self.sampler.submit(requests)


class RecordedModule(PACTModule):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.given = []
        self.trained_on = []

    @contextmanager
    def sampler(self, sampling, prefill_tokens):
        with super().sampler(sampling, prefill_tokens) as sampler:
            yield Recorder(sampler, self.given)

    def prepare_phase(self, groups, optimizer_steps):
        super().prepare_phase(groups, optimizer_steps)
        for group in groups:
            assert group.anchored is None
            self.trained_on.append(render_trace(self.renderer, group.task.trace, with_final=True).ids.tolist())


def fit(module, folder, *, overlap=False):
    """Two whole phases and a validation, through the Trainer: the second phase follows training on the traces."""
    limits = RolloutLimits(max_turns=2, max_new_tokens_per_turn=24, max_trajectory_tokens=300)
    data = RolloutDataModule(
        train=CanaryTasks(),
        validation=CanaryTasks(),
        prompts_per_phase=2,
        prompts_per_step=1,
        rollouts_per_prompt=2,
        overlap=overlap,
        limits=limits,
        max_prompt_tokens=2000,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(module, data)


def assert_no_canary(given):
    for task in CanaryTasks().load():
        assert task.prompt.messages[-1]["content"] in given
    for part, canary in CANARIES.items():
        assert canary not in given, part


def assert_canaries_were_there_to_be_found(module):
    """The phase's groups carry them."""
    trained = "\n".join(map(module.renderer.codec.decode, module.trained_on))
    assert len(module.trained_on) == 4
    for part in ("thought", "argument", "response", "closing", "final"):
        assert CANARIES[part] in trained


def test_no_canary_of_a_trace_reaches_the_sampler(tmp_path):
    module = RecordedModule(policy=POLICY, anchor_probability=0.0)
    fit(module, tmp_path)
    assert len(module.given) >= 12
    assert_no_canary("\n".join(map(module.renderer.codec.decode, module.given)))
    assert_canaries_were_there_to_be_found(module)


@pytest.mark.parametrize("overlap", [False, True])
def test_no_canary_of_a_trace_reaches_a_vllm_server(tmp_path, overlap):
    """Of everything that is sent: the prompts as text, and the requests as they are."""
    policy = PolicyConfig(model="bundled", adapter="lora", dtype="float32", lora_r=4)
    with ProtocolServer() as server:
        module = RecordedModule(policy=policy, anchor_probability=0.0, sampler=server.backend())
        fit(module, tmp_path, overlap=overlap)
        prompts = server.prompts()
        assert len(prompts) >= 12
        assert_no_canary("\n".join(map(module.renderer.codec.decode, prompts)))
        assert not any(canary in json.dumps(server.bodies) for canary in CANARIES.values())
        assert len({name for name, _ in server.ever_loaded}) == 4, "a version for every phase and every validation"
        assert server.loaded == {}
    assert_canaries_were_there_to_be_found(module)
