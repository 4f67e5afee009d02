"""Saves the trained policy as an ordinary model folder when a fit ends."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from pact_lightning.training.policy_module import PolicyModule


class ExportPolicy(pl.Callback):
    """Writes weights, config and tokenizer to a folder that transformers (and this package) can load.

    A LoRA is merged into its base, so that the folder stands alone. A QLoRA is never merged: its 4-bit base would
    have to be rounded again; its adapter is written instead, to be loaded on the same base.

    Args:
        folder: Where to write; made if need be.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the folder, once per run."""
        assert isinstance(pl_module, PolicyModule)
        from peft import PeftModel

        with pl_module.whole_policy() as whole:
            if not trainer.is_global_zero:
                return
            model: Any = whole
            if isinstance(model, PeftModel) and pl_module.policy_config.adapter == "lora":
                model = model.merge_and_unload()
            model.save_pretrained(self.folder)
            pl_module.tokenizer.save_pretrained(self.folder)
