"""Everything that a fit computes with is on the policy's device; found out on one that computes on the CPU."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

if not hasattr(torch._C, "_acc"):
    pytest.skip("this torch takes no devices that are written in Python", allow_module_level=True)
from card_run import VARIANTS

CLOSE = {"bfloat16": 0.01, "full weights": 1e-3}


def run(warm_python, name, phases):
    """In a process of its own: the device stays known to torch until the end of a process."""
    script = Path(__file__).parent.with_name("card_run.py")
    done = subprocess.run(warm_python.command(script, name, phases), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def assert_alike(found):
    assert found["from_cpu"] < CLOSE.get(found["variant"], 1e-5)
    card, cpu = found["scores"]
    assert card == pytest.approx(cpu)


def test_a_phase_and_its_validations_run_on_another_device(warm_python):
    assert_alike(run(warm_python, "lora", 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_way_to_train_runs_there_and_goes_on_after_an_interruption(name, warm_python):
    found = run(warm_python, name, 2)
    assert_alike(found)
    assert found["resumed"] == 0.0
