"""Recipe of a run: the fields that a reader asks for first, and those in which several runs differ."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pact_lightning.utils.yaml_text import read_yaml

_FACTS = {
    "model": "model.init_args.policy.model",
    "adapter": "model.init_args.policy.adapter",
    "LoRA rank": "model.init_args.policy.lora_r",
    "learning rate": "model.init_args.optimizer.learning_rate",
    "SFT coefficient": "model.init_args.coefficients.sft",
    "KL coefficient": "model.init_args.coefficients.kl",
    "anchor probability": "model.init_args.anchor_probability",
    "phases": "trainer.max_epochs",
    "prompts per phase": "data.init_args.prompts_per_phase",
    "prompts per step": "data.init_args.prompts_per_step",
    "rollouts per prompt": "data.init_args.rollouts_per_prompt",
    "temperature": "data.init_args.temperature",
    "most turns": "data.init_args.limits.max_turns",
    "reward": "data.init_args.credit.reward",
    "training tasks": "data.init_args.train.class_path",
    "seed": "seed_everything",
}
_SECRET = re.compile(r"key|token(?!s)|secret|password|header|url", re.IGNORECASE)
_OF_THE_MACHINE = ("trainer.logger", "trainer.default_root_dir", "trainer.callbacks", "name", "ckpt_path")
_SHOWN = 80


def read_config(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Read a run's recipe: ``config.yaml``, or that of an evaluation.

    Returns:
        The fields, none where there is no such file; and a sentence on a file that cannot be read.
    """
    path = next(iter(sorted(folder.glob("config*.yaml"), key=lambda each: (len(each.name), each.name))), None)
    if path is None:
        return {}, []
    try:
        config = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        return {}, [f"{path.name} cannot be read: {' '.join(str(error).split())}"]
    return (config, []) if isinstance(config, dict) else ({}, [f"{path.name} holds no fields"])


def facts_of(config: Mapping[str, Any]) -> list[list[str]]:
    """Return label and value of the fields that a reader asks for first."""
    fields = dict(_flat(config))
    return [[label, _shown(path, fields[path])] for label, path in _FACTS.items() if fields.get(path) is not None]


def differences(configs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the fields in which recipes differ, each with its value in every recipe.

    Folders, loggers and callbacks are left out; of a field that may be a secret only the name is told.
    """
    flat = [dict(_flat(config)) for config in configs]
    paths = sorted({path for fields in flat for path in fields if not path.startswith(_OF_THE_MACHINE)})
    rows = [[path, *(_shown(path, fields.get(path)) for fields in flat)] for path in paths]
    differ = [any(fields.get(path) != flat[0].get(path) for fields in flat) for path in paths]
    return [row for row, differs in zip(rows, differ, strict=True) if differs]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{path}.{name}".removeprefix("."))
    else:
        yield path, value


def _shown(path: str, value: Any) -> str:
    if value is None:
        return "-"
    if _SECRET.search(path.rpartition(".")[2]):
        return "(not shown)"
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
