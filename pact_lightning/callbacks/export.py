"""Export of the trained policy as an ordinary model folder."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import lightning.pytorch as pl


@runtime_checkable
class Exports(Protocol):
    """Module that can write its policy to a folder."""

    def export(self, folder: Path) -> None:
        """Write the policy to ``folder``."""


class ExportPolicy(pl.Callback):
    """Callback that writes the policy's weights, config and tokenizer to a folder at the end of a fit.

    transformers and this package can load the folder. A LoRA adapter is merged into its base model, and the folder
    stands alone. A QLoRA adapter is written unmerged, to be loaded on the same base: merging would round the 4-bit
    base again.

    Args:
        folder: Output folder; created if it does not exist.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Export the policy; Lightning calls this once per fit."""
        del trainer
        assert isinstance(pl_module, Exports)
        pl_module.export(self.folder)
