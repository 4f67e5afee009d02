"""Kills a fit with SIGKILL at random moments, resumes it each time, and compares its end with an undisturbed one.

Between the kills it is also told to stop by SIGTERM, about half as often: such a run goes on within a phase.

    python tests/soak.py --kills 100

Ends with status 0 only if weights, optimiser, metrics and trajectories are the same to the last bit. The packages are
imported once; every start of the run is a process forked from there, so that the kills hit the run and not its imports.
"""

import argparse
import contextlib
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import peft  # noqa: F401  # imported by the run when it loads its policy
import torch
import yaml
from cli_recipe import bundled, recipe

from pact_lightning.cli.main import main
from pact_lightning.resume.metrics_file import comparable
from pact_lightning.utils.csv_rows import read_rows

PHASES = 8
ROLLOUTS = 3
TOKENS = 40

_STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM)  # the second before the run listens to signals


def soak_recipe(folder, phases=PHASES, rollouts=ROLLOUTS, tokens=TOKENS):
    """A run with everything in it that could fail to repeat: dropout, a schedule, validations between, two loggers."""
    config = recipe(folder)
    for logger in config["trainer"]["logger"]:
        logger["init_args"] |= {"name": "run", "version": None}
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    model["policy"] |= {"lora_dropout": 0.1}
    model["optimizer"] |= {"schedule": "cosine", "schedule_steps": 2 * phases}
    model["anchor_probability"] = 0.4
    data |= {"train": bundled("train", 16), "validation": bundled("validation", 2)}
    data |= {"prompts_per_phase": 4, "prompts_per_step": 2, "rollouts_per_prompt": rollouts}
    # Few rows at a time, so that a phase has two parts and a kill finds one of them finished.
    data["limits"] = {"max_turns": 3, "max_new_tokens_per_turn": tokens, "max_trajectory_tokens": 300, "rows": 2}
    config["trainer"] |= {"max_epochs": phases, "check_val_every_n_epoch": 2}
    checkpoint = config["trainer"]["callbacks"][1]["init_args"]
    checkpoint |= {"dirpath": str(folder / "checkpoints"), "save_on_train_epoch_end": True}
    return config


def start(folder, config):
    """Starts the run in a process of its own; what it says goes to a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(config))
    child = os.fork()
    if child:
        return child
    with (folder / "log.txt").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    status = 1
    try:
        main(["fit", "-c", str(path), "--ckpt_path", "last"])
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(child, seconds=None):
    """Waits for a run to end.

    Returns:
        Its exit status, negative for a signal; ``None`` where it is still at work after so many seconds.
    """
    until = None if seconds is None else time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, 0 if until is None else os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.005)


@dataclass
class End:
    """How a run ended: all that an undisturbed one must have too."""

    state: str
    metrics: list
    trajectories: dict = field(repr=False)

    @classmethod
    def of(cls, folder):
        # A run that was killed before it wrote last.ckpt, and has nothing left to train, leaves an older one.
        files = sorted((folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.name != "last.ckpt")
        checkpoint = max((torch.load(path, weights_only=True) for path in files), key=lambda one: one["global_step"])
        kept = [checkpoint[part] for part in ("state_dict", "optimizer_states", "lr_schedulers", "validation_history")]
        kept += [checkpoint["epoch"], checkpoint["global_step"]]
        versions = [path for path in (folder / "run").iterdir() if path.is_dir()]  # beside them the locks
        run = max(versions, key=lambda path: int(path.name.partition("_")[2]))
        files = sorted((run / "trajectories").iterdir())
        return cls(
            hashlib.sha256(_bits(kept)).hexdigest(),
            comparable(read_rows(run / "metrics.csv")),
            {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        )

    def differences(self, other):
        """What is not the same, in words."""
        found = [] if self.state == other.state else ["weights, optimiser or counters"]
        if len(self.metrics) != len(other.metrics):
            found.append(f"{len(self.metrics)} rows of metrics and {len(other.metrics)}")
        for number, (ours, theirs) in enumerate(zip(self.metrics, other.metrics, strict=False)):
            unequal = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
            found += [f"{name} of row {number}: {ours.get(name)} and {theirs.get(name)}" for name in unequal[:3]]
        if self.trajectories != other.trajectories:
            names = self.trajectories.keys() | other.trajectories.keys()
            unequal = sorted(n for n in names if self.trajectories.get(n) != other.trajectories.get(n))
            found.append(f"trajectories ({', '.join(unequal)})")
        return found


def _bits(value):
    if isinstance(value, torch.Tensor):
        return str(value.dtype).encode() + value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return b"".join(repr(key).encode() + _bits(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return b"".join(map(_bits, value))
    return repr(value).encode()


def phases_done(folder):
    """Phases that the run's checkpoints hold."""
    names = [path.name for path in (folder / "checkpoints").glob("epoch=*.ckpt")]
    return max((int(name.partition("=")[2].partition("-")[0]) + 1 for name in names), default=0)


def soak(folder, kills, seed, **size):
    """Runs undisturbed, then killed so many times.

    Returns:
        What differs at the end, over all runs that the kills took.
    """
    draw = random.Random(seed)
    whole = folder / "undisturbed"
    began = time.monotonic()
    if wait(start(whole, soak_recipe(whole, **size))) != 0:
        return [f"the undisturbed run failed; see {whole / 'log.txt'}"]
    took = time.monotonic() - began
    expected = End.of(whole)
    print(f"undisturbed: {took:.1f} s, {len(expected.metrics)} rows, state {expected.state[:16]}", flush=True)
    problems, done, number = [], 0, 0
    while done < kills and not problems:
        number += 1
        killed = folder / f"killed-{number}"
        config = soak_recipe(killed, **size)
        while (status := _attempt(killed, config, took, done, kills, draw)) in (-signal.SIGKILL, *_STOPPED):
            done += status == -signal.SIGKILL
            what = "kill" if status == -signal.SIGKILL else "stop"
            print(f"{what} {done}: {phases_done(killed)} of {size['phases']} phases done", flush=True)
        if status != 0:
            problems.append(f"the run ended with status {status}; see {killed / 'log.txt'}")
        else:
            problems += [f"{killed.name}: {problem}" for problem in expected.differences(End.of(killed))]
            print(f"{killed.name} ended after {done} kills in all", flush=True)
    return problems


def _attempt(folder, config, took, done, kills, draw):
    """Starts or resumes the run and interrupts it, sooner where it is ahead of the kills; its exit status."""
    child = start(folder, config)
    if done >= kills:
        return wait(child)
    phases = config["trainer"]["max_epochs"]
    phase = took / (phases + 2)  # the start takes about two
    ahead = phases_done(folder) / phases > done / kills
    # Within the run, however short it is: a moment after its end would cost another run.
    latest = min(3 * phase if ahead else 6 * phase, 0.9 * took)
    status = wait(child, draw.uniform(0, latest))
    if status is not None:
        return status
    os.kill(child, draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
    return wait(child)  # 0 where it has ended in the meantime, which is as good


def run():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--phases", type=int, default=PHASES)
    parser.add_argument("--rollouts", type=int, default=ROLLOUTS, help="of each prompt")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a turn, at most")
    parser.add_argument("--folder", type=Path, help="where the runs go; else a folder that is removed")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        size = {"phases": arguments.phases, "rollouts": arguments.rollouts, "tokens": arguments.tokens}
        problems = soak(folder, arguments.kills, arguments.seed, **size)
    print("\n".join(f"differs: {problem}" for problem in problems) or "the same to the last bit")
    sys.exit(bool(problems))


if __name__ == "__main__":
    run()
