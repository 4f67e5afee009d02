"""Rollouts made ahead: after which phases, and the recipes that are refused."""

import pytest
from test_cli_mistakes import refusal  # noqa: F401  # a fixture
from test_sampler_correction import ItsOwnSampler
from vllm_protocol_server import ProtocolServer

from pact_lightning.rollout.ahead import another_phase_follows, check_overlap
from pact_lightning.rollout.samplers.vllm.server import VLLMServer

SAMPLER = "model.init_args.sampler"
OVERLAP = {"data.init_args.overlap": True}


def followed(max_phases=-1, max_steps=-1, phase_steps=4):
    """The phases of the first ten after which another one follows, where no step is skipped."""
    limits = {"phase_steps": phase_steps, "max_phases": max_phases, "max_steps": max_steps}
    return [phase for phase in range(10) if another_phase_follows(phase, step=phase * phase_steps, **limits)]


def test_a_phase_follows_while_neither_phases_nor_steps_have_run_out():
    assert followed() == followed(max_phases=None) == list(range(10))
    assert followed(max_phases=3) == [0, 1]
    assert followed(max_phases=1) == followed(max_phases=0) == []
    assert followed(max_steps=12) == [0, 1]
    assert followed(max_steps=13) == [0, 1, 2], "a phase of one step"
    assert followed(max_phases=2, max_steps=12) == [0]


def server_at(url):
    return {
        SAMPLER: {"class_path": f"{VLLMServer.__module__}.VLLMServer", "init_args": {"base_url": url, "retries": 0}}
    }


def test_a_policy_that_samples_itself_cannot_be_trained_meanwhile(refusal):  # noqa: F811
    sentence = refusal(OVERLAP)
    assert "data.overlap needs a sampler that keeps its own weights while the policy is trained" in sentence
    assert "the policy itself, which is being trained; use a vLLM server" in sentence


def test_a_sampler_that_reads_the_policys_weights_is_refused_by_its_name():
    with pytest.raises(ValueError, match=r"\(model.sampler\) is ItsOwnSampler; use a vLLM server"):
        check_overlap(ItsOwnSampler(), 2.0, 1)


def test_stale_rollouts_without_their_correction_are_refused(refusal):  # noqa: F811
    with ProtocolServer() as server:
        sentence = refusal(OVERLAP | server_at(server.url) | {"model.init_args.importance_cap": None})
    assert "model.importance_cap null does not correct for that; set it to auto" in sentence


def test_several_processes_are_refused():
    with pytest.raises(ValueError, match=r"data.overlap works with one process only, and this run has 2"):
        check_overlap(VLLMServer("http://127.0.0.1:9/v1"), 2.0, 2)
    check_overlap(VLLMServer("http://127.0.0.1:9/v1"), 2.0, 1)
