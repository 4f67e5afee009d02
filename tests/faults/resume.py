"""Runs that are killed at chosen moments, and files that are damaged afterwards: the end is the undisturbed run's."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import lightning.pytorch as pl
import torch
from soak import End, soak_recipe, start, wait

from faults.deadline import HangError
from faults.repeated import expect, repeated
from faults.result import FaultResult
from pact_lightning.rollout.store import StoredRollouts

SECTION = "Resume"
PHASES, PROMPTS, ROLLOUTS = 2, 4, 12
DEADLINE_S = 600


class Disturbs(pl.Callback):
    """Ends its own process once, at a moment of its choice.

    Args:
        folder: Where it remembers that it has done so.
        moment: ``rollouts``, ``step`` or ``checkpoint``.
        phase: In which phase; a checkpoint is that of the phase's end.
        count: After how many rollouts, backward passes or written checkpoints.
        number: The signal.
    """

    def __init__(self, folder: str, moment: str, phase: int, count: int, number: int = signal.SIGKILL) -> None:
        self.done = Path(folder) / "disturbed"
        self.moment, self.phase, self.left, self.number = moment, phase, count, number
        self.trainer = None

    def setup(self, trainer, pl_module, stage):
        self.trainer = trainer
        append, save = StoredRollouts.append, torch.save

        def appended(stored, request, trajectory):
            append(stored, request, trajectory)
            if stored._log.path.stem == f"phase-{self.phase:04d}":
                self._due("rollouts")

        def half_saved(content, file, *arguments):
            save(content, file, *arguments)
            if self.moment == "checkpoint" and trainer.current_epoch >= self.phase and hasattr(file, "truncate"):
                whole = file.tell()
                file.truncate(whole // 2)
                file.flush()
                self._due("checkpoint")
                file.truncate(whole)

        if not self.done.exists():
            StoredRollouts.append, torch.save = appended, half_saved

    def on_after_backward(self, trainer, pl_module):
        if trainer.current_epoch == self.phase:
            self._due("step")

    def _due(self, moment):
        if moment != self.moment or self.done.exists():
            return
        self.left -= 1
        if not self.left:
            self.done.touch()
            os.kill(os.getpid(), self.number)


def _nothing(folder, draw):
    """No damage beside the kill."""


def _cut(path, draw):
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(1, len(content))])


def _cut_newest(folder, draw):
    _cut(_newest(folder), draw)


def _flip_newest(folder, draw):
    path = _newest(folder)
    content = bytearray(path.read_bytes())
    # Within the weights: they are most of the file, and lie in its middle.
    content[draw.randrange(len(content) // 4, len(content) // 2)] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def _cut_all(folder, draw):
    for path in (folder / "checkpoints").glob("*.ckpt"):
        _cut(path, draw)


def _cut_rollouts(folder, draw):
    for path in (folder / "checkpoints" / "rollouts").glob("*.jsonl"):
        _cut(path, draw)


def _junk(folder, draw):
    checkpoints = folder / "checkpoints"
    with (checkpoints / "rollouts" / "phase-0001.jsonl").open("ab") as stored:
        stored.write(draw.randbytes(200) + b"\n")
    (checkpoints / "rollouts" / "notes.txt").write_bytes(draw.randbytes(200))
    (checkpoints / "older.ckpt").mkdir()
    (checkpoints / "mine.ckpt").write_bytes(draw.randbytes(200))


def _newest(folder):
    return max((folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


FAULTS = (
    # What is injected, the moment, its phases, how many events there are in a phase, the signal, what is damaged then.
    ("killed while it rolls out", "rollouts", range(PHASES), ROLLOUTS, signal.SIGKILL, _nothing),
    # The first one: a step without variance has no backward pass.
    ("killed within an optimiser step", "step", range(PHASES), 1, signal.SIGKILL, _nothing),
    ("killed while it writes a checkpoint", "checkpoint", range(PHASES), 2, signal.SIGKILL, _nothing),
    ("told to stop (SIGTERM)", "rollouts", range(PHASES), ROLLOUTS, signal.SIGTERM, _nothing),
    ("killed, and the newest checkpoint cut off", "rollouts", [1], ROLLOUTS, signal.SIGKILL, _cut_newest),
    ("killed, and a bit of the newest checkpoint flipped", "rollouts", [1], ROLLOUTS, signal.SIGKILL, _flip_newest),
    ("killed, and every checkpoint cut off", "rollouts", [1], ROLLOUTS, signal.SIGKILL, _cut_all),
    ("killed, and the stored rollouts cut off", "rollouts", range(PHASES), ROLLOUTS, signal.SIGKILL, _cut_rollouts),
    ("killed, and junk among checkpoints and rollouts", "rollouts", [1], ROLLOUTS, signal.SIGKILL, _junk),
)


def run(times):
    """Each fault in a run of its own, so at most twice; all in a process without threads, which may fork."""
    command = [sys.executable, "-m", "faults.resume", str(min(times, 2))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return [FaultResult(SECTION, "all", 1, 0, " ".join(done.stderr.split())[-200:])]
    return [FaultResult(**row) for row in json.loads(done.stdout.splitlines()[-1])]


def _rows(times):
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "undisturbed"
        _wait(start(whole, soak_recipe(whole, PHASES)), 0, whole)
        expected = End.of(whole)
        return [
            repeated(SECTION, fault[0], times, _Injection(Path(folder) / str(place), fault, expected).inject)
            for place, fault in enumerate(FAULTS)
        ]


class _Injection:
    def __init__(self, folder, fault, expected):
        self.folder, self.expected = folder, expected
        self.name, self.moment, self.phases, self.events, self.signal, self.damage = fault

    def inject(self, number):
        draw = random.Random(f"{self.name} {number}")
        folder = self.folder / str(number)
        phase = self.phases[number % len(self.phases)]
        config = soak_recipe(folder, PHASES)
        arguments = {"folder": str(folder), "moment": self.moment, "phase": phase}
        arguments |= {"count": draw.randint(1, self.events), "number": int(self.signal)}
        config["trainer"]["callbacks"].append({"class_path": "faults.resume.Disturbs", "init_args": arguments})
        killed = -signal.SIGKILL if self.signal == signal.SIGKILL else 128 + self.signal
        _wait(start(folder, config), killed, folder)
        self.damage(folder, draw)
        _wait(start(folder, config), 0, folder)
        differences = self.expected.differences(End.of(folder))
        expect(not differences, f"differs: {'; '.join(differences[:2])}")
        known = (".ckpt", ".damaged", ".partial")
        left = [path.name for path in (folder / "checkpoints").iterdir() if path.suffix not in known]
        expect(not left, f"left behind: {', '.join(left)}")
        return (
            "the same command went on; weights, optimiser, metrics, trajectories are the undisturbed run's, bit for bit"
        )


def _wait(child, expected, folder):
    status = wait(child, DEADLINE_S)
    if status is None:
        os.kill(child, signal.SIGKILL)
        wait(child)
        raise HangError(f"no end within {DEADLINE_S} s")
    if status != expected:
        told = (folder / "log.txt").read_text(errors="replace").strip().splitlines()
        expect(False, f"ended with status {status}, not {expected}: {' '.join(told[-1:])}")


if __name__ == "__main__":
    found = _rows(int(sys.argv[1]))
    print(json.dumps([asdict(row) for row in found]))
