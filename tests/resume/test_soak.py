"""A short soak: see ``make soak`` for the long one."""

import subprocess
from pathlib import Path

import pytest

SOAK = Path(__file__).parent.parent / "soak.py"


@pytest.mark.timeout(600)
def test_a_run_killed_at_random_moments_ends_as_the_undisturbed_one(tmp_path, warm_python):
    size = ["--kills", "1", "--phases", "2", "--rollouts", "2", "--tokens", "12"]
    command = warm_python.command(SOAK, *size, "--folder", tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kill 1:" in done.stdout
