"""Fixtures and marks shared by all tests."""

import os
from pathlib import Path

import pytest

# The models here are so small that a second thread mostly waits for the first one, and takes its core from the
# processes that tests start. They inherit it; torch reads it when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test asks the hub; without a network each question would be repeated for half a minute.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import rooms  # noqa: F401  # puts the rooms on the path
import torch

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run tests that take minutes of CPU")


# Files that take longest, in seconds on two idle cores. They start first: a worker gets whole files in this order, and
# a long one at the end would leave the others idle.
LONGEST = {
    "test_processes": 80,
    "test_docs": 55,
    "test_interruption": 35,
    "test_soak": 30,
    "test_mcp_environment": 28,
    "test_overlap": 26,
    "test_command_plan": 24,
    "test_traces_generate": 22,
    "test_checkpoint_resume": 22,
    "test_mcp_outage": 20,
    "test_pact_module": 20,
    "test_flex_attention": 20,
    "test_other_device": 19,
    "test_cli_mistakes": 18,
    "test_faults": 17,
    "test_slurm_requeue": 15,
    "test_last_checkpoint": 15,
    "test_vllm_server": 15,
    "test_cli": 14,
    "test_bfcl_check": 13,
}


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: -LONGEST.get(item.path.stem, 0))
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes of CPU; run with --slow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if "shared" in item.keywords and not SHARED_DATA.is_dir():
            item.add_marker(pytest.mark.skip(reason="needs ../shared/data, which is not part of the project"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data that lives beside the project, where there is one."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs ../shared/data, which is not part of the project")
    return SHARED_DATA
