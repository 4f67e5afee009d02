"""Row ``plan_error``: memory that ``pact-lightning plan`` foretells, beside the peak of a real fit."""

import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.row import Rounds, Row

_TASKS = "pact_lightning.BundledTasks"
_MIB = 2**20
_TURN = 256
_RESULT = "peaks: "
# Freed memory leaves the process, whose peak is then that of live tensors. For the same reason the package's setting
# that keeps freed memory for speed is off: the heap's surplus depends on all earlier allocations (docs/plan.md).
_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class Case:
    """Policy of random weights, with its differences from the first recipe."""

    name: str
    vocabulary: int = 8192
    policy: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("lora", policy={"adapter": "lora"}),
    Case("full weights", policy={"adapter": "full"}),
    Case("vocabulary 49152", vocabulary=49_152, policy={"adapter": "full", "gradient_checkpointing": True}),
)


def run(rounds: Rounds) -> Row:
    """Plan and run every case once, since the peak of a process hardly varies; the worst case is the figure."""
    peaks: dict[str, tuple[float, float]] = {}
    for case in CASES:
        rounds.tell(case.name)
        with tempfile.TemporaryDirectory() as folder:
            found = _in_own_process(case, Path(folder))
        peaks[case.name] = (found["planned"], found["measured"])
    errors = {name: abs(planned - measured) / measured for name, (planned, measured) in peaks.items()}
    worst = max(errors, key=errors.__getitem__)
    return Row(
        "plan_error",
        *peaks[worst],
        ratio=errors[worst],
        goal=0.15,
        goal_is="at most",
        repeats=1,
        settings={
            "unit": "MiB",
            "cases": peaks,
            "errors": {name: round(error, 4) for name, error in errors.items()},
            "model": "Qwen3 shape, random weights: hidden 512, 8 layers, 8 heads, 4 key heads, float32",
            "run": "one phase of two optimiser steps, one prompt each; peer: peak of the process's resident memory "
            "(VmHWM, reset before) above that after a small fit",
            "malloc": {**_MALLOC, "keep_freed_memory": False},
        },
    )


def _in_own_process(case: Case, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.plan_error", case.name, str(folder)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | _MALLOC)
    (line,) = [line for line in process.stdout.splitlines() if line.startswith(_RESULT)]
    found: dict[str, float] = json.loads(line.removeprefix(_RESULT))
    return found


def _measure(case: Case, folder: Path) -> dict[str, float]:
    """Plan a case, run it after a small one, and compare the peaks."""
    from pact_lightning.cli.main import main
    from pact_lightning.training import policy_module

    vars(policy_module)["keep_freed_memory"] = lambda: False
    save_model(folder / "model", case.vocabulary)
    small = saved_recipe(case, folder, "bundled")
    recipe = saved_recipe(case, folder, str(folder / "model"))
    in_rollouts, in_update = planned_bytes(recipe)
    main(["fit", "-c", str(small)])
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    baseline = _reset_peak()
    main(["fit", "-c", str(recipe)])
    return {
        "planned": max(in_rollouts, in_update) / _MIB,
        "measured": (_resident("VmHWM") - baseline) / _MIB,
        "rollouts": in_rollouts / _MIB,
        "update": in_update / _MIB,
    }


def planned_bytes(recipe: Path, device_type: str | None = None) -> tuple[int, int]:
    """Plan a run; return the bytes of its rollouts and of its update."""
    from pact_lightning.cli.plan_recipe import read_recipe
    from pact_lightning.plan.lengths import Lengths
    from pact_lightning.plan.run_plan import make_plan
    from pact_lightning.policy.loading import policy_skeleton

    settings = read_recipe(["-c", str(recipe)], device_type)
    prompt, trace = _longest(settings.policy)
    lengths = Lengths(prompt, trace, settings.max_trajectory_tokens)
    memory = make_plan(settings, policy_skeleton(settings.policy), lengths).memory
    return memory.in_rollouts, memory.in_update


def _longest(policy: Any) -> tuple[int, int]:
    """Return the tokens of prompt and trace of the longest task of the run."""
    from pact_lightning.dialogue.families import make_renderer
    from pact_lightning.policy.loading import load_tokenizer
    from pact_lightning.tasks.bundled.tasks import BundledTasks
    from pact_lightning.update.context import ContextBuilder

    contexts = ContextBuilder(make_renderer(load_tokenizer(policy)), "turns", "full", 10**6)
    found = []
    for task in BundledTasks("train", 2).load():
        assert task.trace is not None
        context = contexts.privileged(task, task.trace, 4, 0)
        assert context is not None
        found.append((len(context.prompt), len(context.ids) - len(context.prompt)))
    return max(found, key=sum)


def save_model(folder: Path, vocabulary: int) -> None:
    """Save a policy of random weights, and the bundled tokenizer with as many words more as it takes."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from pact_lightning.policy.loading import PolicyConfig, load_tokenizer

    tokenizer = load_tokenizer(PolicyConfig())
    tokenizer.add_tokens([f"~{number}~" for number in range(vocabulary - len(tokenizer))])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        tie_word_embeddings=True,
    )
    model: Any = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)


def saved_recipe(case: Case, folder: Path, model: str) -> Path:
    """Write the recipe of a case into a folder; with the bundled model its turns are short."""
    turn = _TURN if model != "bundled" else 16
    limits = {"max_turns": 1, "max_new_tokens_per_turn": turn, "max_trajectory_tokens": turn, "rows": 8}
    train = {"class_path": _TASKS, "init_args": {"split": "train", "count": 2}}
    config = {
        "seed_everything": 0,
        "model": {
            "class_path": "pact_lightning.PACTModule",
            "init_args": {
                "policy": {"model": model, "dtype": "float32", **case.policy},
                "anchor_probability": 0.0,
                "zero_variance": "keep",
                "max_tokens_per_forward": 16_384,
            },
        },
        "data": {
            "class_path": "pact_lightning.RolloutDataModule",
            "init_args": {
                "train": train,
                "prompts_per_phase": 2,
                "prompts_per_step": 1,
                "rollouts_per_prompt": 4,
                "limits": limits,
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder),
        },
    }
    path = folder / f"{'small' if model == 'bundled' else 'recipe'}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def _reset_peak() -> int:
    """Make Linux forget the peak of this process; return the bytes that it holds now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _resident("VmRSS")


def _resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}; this row can be measured on Linux only")


if __name__ == "__main__":
    (chosen,) = [case for case in CASES if case.name == sys.argv[1]]
    print(_RESULT + json.dumps(_measure(chosen, Path(sys.argv[2]))))
