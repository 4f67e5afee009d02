"""A run's folder: one run at a time, and junk in it ends in a sentence or is put aside."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_run import AfterStep, fit, short, trainer

from pact_lightning.resume.last_checkpoint import last_checkpoint
from pact_lightning.resume.lock import hold, release
from pact_lightning.resume.metrics_file import MetricsFile
from pact_lightning.utils.csv_rows import read_rows

HOLDER = """
import sys, time
from pathlib import Path
from pact_lightning.resume.lock import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder ``run``."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_folder_in_use_is_refused_by_process_and_host_until_the_other_is_gone(tmp_path, holder):
    folder = tmp_path / "run"
    with pytest.raises(BlockingIOError, match=rf"process {holder.pid} on host {os.uname().nodename}, since 20"):
        hold(folder)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run.lock").exists(), "a killed process leaves its file, which locks nothing"
    hold(folder)
    hold(folder)
    assert json.loads((tmp_path / "run.lock").read_text())["process"] == os.getpid()
    release(folder)
    assert not (tmp_path / "run.lock").exists()


def test_a_child_of_a_killed_run_does_not_keep_its_folder(tmp_path):
    command = HOLDER.replace("time.sleep(600)", "import os\nif os.fork():\n    os._exit(0)\ntime.sleep(600)")
    with subprocess.Popen(
        [sys.executable, "-c", command, str(tmp_path / "run")], stdout=subprocess.PIPE, start_new_session=True
    ) as parent:
        parent.stdout.readline()
        parent.wait()
        hold(tmp_path / "run")
        release(tmp_path / "run")
        os.killpg(parent.pid, signal.SIGKILL)


def test_a_fit_in_a_folder_in_use_is_refused_before_the_policy_is_loaded(tmp_path, monkeypatch, holder):
    holder_folder = tmp_path / "run"
    monkeypatch.setattr("pact_lightning.training.policy_module.load_policy", lambda _: pytest.fail("is loaded"))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints.lock").symlink_to(holder_folder.with_name("run.lock"))
    with pytest.raises(BlockingIOError, match="checkpoints is in use by a run"):
        fit(tmp_path, short)
    assert list((tmp_path / "checkpoints").rglob("*")) == []


def test_a_finished_fit_leaves_no_lock_and_nor_does_a_stopped_one(tmp_path):
    with pytest.raises(SystemExit):
        fit(tmp_path, short, AfterStep(0, 0))
    assert not list(tmp_path.rglob("*.lock"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that was told to stop within its first phase."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(SystemExit):
        fit(folder, short, AfterStep(0, 0))
    return folder


def copied(stopped, tmp_path):
    for path in stopped.rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(stopped)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tmp_path / "checkpoints"


def test_junk_in_stored_rollouts_is_told_and_made_again(stopped, tmp_path):
    folder = copied(stopped, tmp_path) / "rollouts"
    with (folder / "validation-0001.jsonl").open("w") as file:
        file.write((folder / "phase-0000.jsonl").read_text().splitlines()[0] + "\n")
        file.writelines(f"{line}\n" for line in ('{"request": []}', "[]", '{"rollout": {"sample": "x"}}', "7"))
    (folder / "phase-0001.jsonl").mkdir()
    with pytest.warns(UserWarning, match=r"stored rollouts are ignored"):
        fit(tmp_path, short, ckpt_path=last_checkpoint)
    assert not folder.exists()


@pytest.mark.parametrize("junk", [b"\xff\xfe\x00binary", b"a,b\r\n1,2,3,4\r\n5\r\n"])
def test_metrics_that_are_no_table_are_put_aside(tmp_path, junk):
    (tmp_path / "metrics.csv").write_bytes(junk)
    file = MetricsFile(str(tmp_path))
    with pytest.warns(UserWarning, match=r"is not a table of metrics .* it is now metrics\.csv\.damaged"):
        file.begin(keep=1)
    file.log_metrics({"loss": 1.0}, step=0)
    file.save()
    assert read_rows(tmp_path / "metrics.csv") == [{"loss": "1.0", "step": "0"}]
    assert (tmp_path / "metrics.csv.damaged").read_bytes() == junk


def test_a_folder_in_the_place_of_a_checkpoint_is_passed_over(stopped, tmp_path):
    folder = copied(stopped, tmp_path)
    (folder / "last.ckpt").mkdir()
    with pytest.warns(UserWarning, match=r"last\.ckpt is a folder, not a checkpoint"):
        found = last_checkpoint(trainer(tmp_path))
    assert Path(found).name == "last-interrupted.ckpt"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda content: content.update(exact_resume=7), "its `exact_resume` is no mapping"),
        (lambda content: content["exact_resume"].update(written="x"), "has written of another form"),
        (lambda content: content["exact_resume"].update(rows=["x"]), "has rows of another form"),
        (lambda content: content["exact_resume"].update(rows=[{}]), "has rows of another form"),
        (lambda content: content["loops"].pop("fit_loop"), "its counters of phases and steps cannot be read"),
    ],
)
def test_what_an_exact_resume_cannot_read_is_told(stopped, tmp_path, change, sentence):
    path = copied(stopped, tmp_path) / "last-interrupted.ckpt"
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(ValueError, match=rf"a fit cannot resume from the checkpoint .*{sentence}; use an earlier one"):
        last_checkpoint(trainer(tmp_path))


def test_the_lock_of_the_working_directory_stands_in_it(tmp_path, monkeypatch):
    """What is beside it is not the run's, and may be closed to it, as beside a mount point."""
    monkeypatch.chdir(tmp_path)
    hold(Path())
    assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]
    assert not tmp_path.with_name(f"{tmp_path.name}.lock").exists()
    release(Path())
    assert not list(tmp_path.iterdir())
