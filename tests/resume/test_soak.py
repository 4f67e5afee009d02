"""A short soak: see ``make soak`` for the long one."""

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parent.parent / "soak.py"


@pytest.mark.timeout(600)
def test_a_run_killed_at_random_moments_ends_as_the_undisturbed_one(tmp_path):
    size = ["--kills", "2", "--phases", "2", "--rollouts", "2"]
    command = [sys.executable, str(SOAK), *size, "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kill 2:" in done.stdout
