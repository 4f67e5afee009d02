"""A small recipe for tests of the command line."""

import json

import yaml
from shallow_policy import shallow_folder

BUNDLED = "pact_lightning.BundledTasks"
SERVER = {
    "model.init_args.sampler": {
        "class_path": "pact_lightning.VLLMServer",
        "init_args": {"base_url": "http://127.0.0.1:1/v1"},
    }
}
"""A sampler at which nobody listens."""


def bundled(split, count):
    return {"class_path": BUNDLED, "init_args": {"split": split, "count": count}}


def recipe(folder):
    """A quickstart of one phase."""
    loggers = [
        {
            "class_path": f"lightning.pytorch.loggers.{name}",
            "init_args": {"save_dir": str(folder), "name": "", "version": "run"},
        }
        for name in ("CSVLogger", "TensorBoardLogger")
    ]
    return {
        "seed_everything": 0,
        "model": {
            "class_path": "pact_lightning.PACTModule",
            "init_args": {
                "policy": {"adapter": "lora", "lora_r": 4, "dtype": "float32"},
                "optimizer": {"learning_rate": 1.0e-3},
                "anchor_probability": 0.0,
                "max_tokens_per_forward": 4096,
            },
        },
        "data": {
            "class_path": "pact_lightning.RolloutDataModule",
            "init_args": {
                "train": bundled("train", 4),
                "validation": bundled("validation", 2),
                "test": bundled("test", 2),
                "predict": bundled("longer", 1),
                "prompts_per_phase": 2,
                "prompts_per_step": 1,
                "rollouts_per_prompt": 2,
                "max_prompt_tokens": 600,
                "limits": {"max_turns": 2, "max_new_tokens_per_turn": 12, "max_trajectory_tokens": 200, "rows": 4},
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "num_sanity_val_steps": -1,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": loggers,
            "callbacks": [
                {"class_path": "pact_lightning.AnnealingCallback"},
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"dirpath": str(folder / "run" / "checkpoints"), "save_last": True},
                },
            ],
        },
    }


def saved(folder, changes=None):
    """The recipe as a file, with ``changes`` put in by their dotted paths."""
    config = recipe(folder)
    for path, value in (changes or {}).items():
        *parents, last = path.split(".")
        place = config
        for name in parents:
            place = place[name]
        place[last] = value
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(config))
    return str(file)


def shallow(folder, changes=None):
    """The same of a policy of one layer."""
    return saved(folder, {"model.init_args.policy.model": shallow_folder()} | (changes or {}))


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
