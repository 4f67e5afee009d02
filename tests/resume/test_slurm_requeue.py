"""SLURM's requeue signal: saved once and whole, requeued, ended by SLURM, and gone on with bit for bit."""

import os
import signal
import stat
import sys

import pytest
from small_run import AfterStep, InRollouts, fit, short, small_parts  # noqa: F401  # in force by being here
from soak import End, wait

from pact_lightning.resume.checkpoint_files import read_checkpoint
from pact_lightning.resume.last_checkpoint import last_checkpoint

JOB = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
JOB |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "SLURM_NTASKS_PER_NODE": "1"}
SCONTROL = """#!{python}
import os, signal, sys
with open({log!r}, "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
os.kill(os.getppid(), signal.{ends})
"""
"""A requeue ends the job: by SIGTERM, and where that is of no use, by SIGKILL."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    fit(folder, short)
    return End.of(folder)


def in_child(folder, *arguments, ckpt_path=None):
    """A fit in a process of its own; gives its exit status."""
    folder.mkdir(exist_ok=True)
    child = os.fork()
    if child:
        status = wait(child, 250)
        if status is None:
            os.kill(child, signal.SIGKILL)
            wait(child)
        return status
    with (folder / "log.txt").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        with pytest.MonkeyPatch.context() as patch:
            fit(folder, short, *[make(patch) for make in arguments], ckpt_path=ckpt_path)
        os._exit(0)
    except SystemExit as stop:
        os._exit(stop.code)
    finally:
        os._exit(1)


MOMENTS = {
    "within a phase": lambda patch: AfterStep(1, 0, signal.SIGUSR1),
    "at the end of a phase": lambda patch: AfterStep(0, 1, signal.SIGUSR1),
    "in rollouts": lambda patch: InRollouts(patch, "phase-0001", 6, signal.SIGUSR1),
    "in the check before the first phase": lambda patch: InRollouts(patch, "validation-0000", 1, signal.SIGUSR1),
    "in a validation": lambda patch: InRollouts(patch, "validation-0001", 1, signal.SIGUSR1),
}


CASES = [*((moment, "SIGKILL") for moment in MOMENTS), ("within a phase", "SIGTERM")]
UNLIKE = [("within a phase", "SIGKILL"), ("in the check before the first phase", "SIGKILL")]
"""The others' moments are of the same kind, or moments at which a run is interrupted in test_interruption too."""


@pytest.mark.parametrize(
    ("moment", "ends"), [pytest.param(*case, marks=[pytest.mark.slow] * (case not in UNLIKE)) for case in CASES]
)
def test_a_requeued_run_goes_on_as_if_nothing_had_been(undisturbed, tmp_path, monkeypatch, moment, ends):
    asked = tmp_path / "asked.txt"
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(SCONTROL.format(python=sys.executable, log=str(asked), ends=ends))
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IEXEC)
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}")
    folder = tmp_path / "run"
    expected = {"SIGKILL": -signal.SIGKILL, "SIGTERM": 128 + signal.SIGTERM}[ends]
    assert in_child(folder, MOMENTS[moment]) == expected, (folder / "log.txt").read_text()[-2000:]
    assert asked.read_text() == "requeue 4711\n", "once"
    (saved,) = folder.glob("hpc_ckpt_*.ckpt")
    read_checkpoint(saved)
    assert not list(folder.rglob("*.partial"))
    # Lightning itself takes SLURM's checkpoint where no other is named.
    named = None if moment == "within a phase" else last_checkpoint
    assert in_child(folder, ckpt_path=named) == 0, (folder / "log.txt").read_text()[-2000:]
    assert undisturbed.differences(End.of(folder)) == []
    assert asked.read_text() == "requeue 4711\n"
