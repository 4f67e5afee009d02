"""A vLLM server that is there at the start and then of no use: the run stops with its state saved, and goes on."""

import pytest
import torch
from hand_made import LORA, quiet_trainer
from vllm_protocol_server import ProtocolServer

from pact_lightning.rollout.engine import RolloutLimits
from pact_lightning.rollout.samplers.base import SamplerUnavailableError
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.training.rollout_datamodule import RolloutDataModule
from pact_lightning.update.optimizer import OptimizerConfig

LIMITS = RolloutLimits(max_turns=2, max_new_tokens_per_turn=8, max_trajectory_tokens=200)


def fit(folder, backend, checkpoint=None):
    """Two phases of two prompts; the weights that they end with."""
    module = PACTModule(policy=LORA, optimizer=OptimizerConfig(1e-3), sampler=backend)
    data = RolloutDataModule(
        train=BundledTasks("train", 4), prompts_per_phase=2, prompts_per_step=1, rollouts_per_prompt=2, limits=LIMITS
    )
    trainer = quiet_trainer(max_epochs=2, default_root_dir=folder)
    trainer.fit(module, data, ckpt_path=checkpoint)
    assert trainer.global_step == 4
    return {name: weight.detach().clone() for name, weight in module.model.named_parameters() if weight.requires_grad}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with ProtocolServer() as server:
        weights = fit(tmp_path_factory.mktemp("undisturbed"), server.backend())
    return weights, len(server.prompts())


FAULTS = {
    "errors between the phases": (0.6, 500, {"error": {"message": "CUDA error"}}, "CUDA error"),
    "broken connections in a phase": (0.9, None, "", "cannot be reached"),
    "no JSON in a phase": (0.8, 200, "<html>", "did not answer with JSON"),
}


@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=[pytest.mark.slow] * (name == "no JSON in a phase")) for name in FAULTS]
)
def test_a_server_that_fails_from_some_moment_on_stops_the_run_which_goes_on_later(undisturbed, tmp_path, fault):
    weights, requests = undisturbed
    share, status, answer, told = FAULTS[fault]
    first = round(share * requests)

    def disturb(path, body, number):
        return (status, answer) if path == "/v1/completions" and number >= first else None

    with ProtocolServer(disturb=disturb) as server, pytest.raises(SamplerUnavailableError, match=told) as caught:
        fit(tmp_path, server.backend(retries=1))
    saved = tmp_path / "checkpoints" / "last-stopped.ckpt"
    told = f"Everything up to the last finished phase is saved as {saved}; resume with --ckpt_path {saved} once"
    assert told in str(caught.value)
    with ProtocolServer() as server:
        resumed = fit(tmp_path, server.backend(), saved)
        assert len(server.prompts()) < requests, "what was finished is not sampled again"
    assert resumed.keys() == weights.keys()
    assert all(torch.equal(weight, resumed[name]) for name, weight in weights.items())
