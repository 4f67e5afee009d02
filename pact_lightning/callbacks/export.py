"""Export of the trained policy as an ordinary model folder."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from pact_lightning.utils.processes import only_tries, run_folder


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
        folder: Output folder; created if it does not exist. By default ``exported`` in the run's folder.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Export the policy; Lightning calls this once per fit. A ``fast_dev_run`` exports nothing."""
        assert isinstance(pl_module, Exports)
        if only_tries(trainer):
            return
        run = run_folder(trainer)  # all processes have to ask together
        folder = run / "exported" if self.folder is None else Path(self.folder)
        pl_module.export(folder)
        rank_zero_info(f"the policy is exported to {folder}")
