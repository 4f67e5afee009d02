"""Export of the trained policy as an ordinary model folder when a fit ends."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from pact_lightning.export.folder import check_folder
from pact_lightning.policy.loading import PolicyConfig
from pact_lightning.policy.saving import Form, check_form
from pact_lightning.utils.processes import only_tries, run_folder


@runtime_checkable
class Exports(Protocol):
    """Module that can write its policy to a folder."""

    policy_config: PolicyConfig

    def export(self, folder: Path, form: Form | None = None) -> None:
        """Write the policy to ``folder``."""


class ExportPolicy(pl.Callback):
    """Callback that exports the policy at the end of a fit, as ``pact-lightning export`` does afterwards.

    The folder has weights, config, tokenizer with its chat template, generation config and model card. The policy stays
    as it is, so a test may follow. By default a LoRA adapter is merged into its base model, and the folder stands
    alone; a QLoRA adapter is written unmerged, to be loaded on the same 4-bit base, since merging would round.

    Args:
        folder: Output folder; an earlier export in it is replaced. By default ``exported`` in the run's folder.
        to: ``merged`` or ``adapter``.
    """

    def __init__(self, folder: str | None = None, to: Form | None = None) -> None:
        self.folder = folder
        self.to = to

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse before training what could not be written after it.

        Raises:
            FileExistsError: The folder holds something else.
            ValueError: All weights are trained, and an adapter is asked for.
        """
        folder = self._folder(trainer)  # all processes have to ask together
        if stage == "fit":
            assert isinstance(pl_module, Exports)
            check_form(pl_module.policy_config, self.to or "merged")
            check_folder(folder, pl_module.policy_config)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Export the policy; Lightning calls this once per fit. A ``fast_dev_run`` exports nothing."""
        assert isinstance(pl_module, Exports)
        if only_tries(trainer):
            return
        folder = self._folder(trainer)
        pl_module.export(folder, self.to)
        rank_zero_info(f"the policy is exported to {folder}")

    def _folder(self, trainer: pl.Trainer) -> Path:
        run = run_folder(trainer)
        return run / "exported" if self.folder is None else Path(self.folder)
