"""Folder of a run: one run at a time, of one recipe, with one ``last.ckpt`` that is always the newest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from rich.console import Console

from pact_lightning.resume.checkpoint_files import is_remote, newest_whole
from pact_lightning.resume.interruption import save_path
from pact_lightning.resume.lock import hold, release
from pact_lightning.resume.recipe_change import ALLOW, MADE_BY, change_table, recipe_changes
from pact_lightning.utils.processes import only_tries, run_folder

_OF_A_RUN = ("metrics.csv", "config.yaml", "hparams.yaml", "trajectories")


class RunFolder(pl.Callback):
    """A callback that keeps the folder of a run for it alone; every ``PolicyModule`` brings one.

    Args:
        module: Name of the class that trains, such as ``PACTModule``.
        recipe: What is known of the recipe without the command: ``model.policy`` and ``model.optimizer``.

    Attributes:
        recipe: What checkpoints say they were made by.
        whole_recipe: Whether ``recipe`` has all of its fields, since the command read it.
        config: Content of ``config.yaml``, from the command.
        allow_change: Whether a fit may go on under a recipe that trains something else.
    """

    def __init__(self, module: str, recipe: Mapping[str, Any]) -> None:
        self.module = module
        self.recipe = recipe
        self.policy = recipe["model"]["policy"]
        self.whole_recipe = False
        self.config = ""
        self.allow_change = False
        self._held: list[Path] = []
        self._without_last: list[tuple[ModelCheckpoint, bool | Literal["link"] | None]] = []
        self._begun = False
        self._told: Path | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the lock of the folders that the fit writes to; several processes of one run share it.

        Raises:
            BlockingIOError: Another run holds one of them.
        """
        del pl_module
        self._begun = False
        if stage != "fit":
            return
        if only_tries(trainer):
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint):
                    # Lightning would write its last.ckpt all the same, over that of the run which is tried.
                    self._without_last.append((callback, callback.save_last))
                    callback.save_last = None
            return
        folders = [run_folder(trainer), *([Path(save_path(trainer)).parent] if trainer.checkpoint_callbacks else [])]
        if trainer.is_global_zero:
            for folder in folders:
                if not is_remote(folder):
                    hold(folder)
                    self._held.append(folder)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let the folders go."""
        del trainer, pl_module, stage
        self._let_go()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let the folders go."""
        del trainer, pl_module, exception
        self._let_go()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say in the checkpoint what made it."""
        del trainer, pl_module
        checkpoint[MADE_BY] = {
            "module": self.module,
            "policy": self.policy,
            "recipe": self.recipe,
            "whole_recipe": self.whole_recipe,
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Check that the run can be gone on with.

        Raises:
            ValueError: Another module or another recipe made the checkpoint.
        """
        del pl_module
        if trainer.state.fn == "fit":
            self.check_made_by(Path(str(trainer.ckpt_path)), checkpoint)

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin as :meth:`on_train_start` does, with a run that is not resumed."""
        self.on_train_start(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put an earlier run's files aside, if this one is not resumed, and write the recipe where loggers show it.

        A fit that has nothing left to train does not come here, and changes nothing.
        """
        del pl_module
        if self._begun or only_tries(trainer):
            return
        self._begun = True
        folder = run_folder(trainer)
        checkpoints = [
            (callback, Path(callback.dirpath))
            for callback in trainer.checkpoint_callbacks
            if isinstance(callback, ModelCheckpoint) and callback.dirpath and not is_remote(callback.dirpath)
        ]
        if trainer.is_global_zero and not is_remote(folder):
            if not trainer.ckpt_path and not trainer.global_step:
                put_aside(folder, {place for _, place in checkpoints})
            if self.config:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "config.yaml").write_text(self.config, encoding="utf-8")
        for logger in trainer.loggers:
            if self.config and not isinstance(logger, CSVLogger):  # config.yaml stands beside its file
                logger.log_hyperparams(yaml.safe_load(self.config))
        trainer.strategy.barrier()
        for callback, place in checkpoints:
            last = place / f"{callback.CHECKPOINT_NAME_LAST}{callback.FILE_EXTENSION}"
            if callback.save_last and last.is_file():  # else Lightning would call its next one last-v1
                callback.last_model_path = str(last)

    def check_made_by(self, path: Path, checkpoint: Mapping[str, Any]) -> None:
        """Check what made a checkpoint, and tell once what has changed since.

        Args:
            path: The checkpoint's file.
            checkpoint: Its content.

        Raises:
            ValueError: Another module or another recipe made it.
        """
        if path == self._told:
            return
        made_by = checkpoint.get(MADE_BY)
        if not isinstance(made_by, Mapping) or not isinstance(made_by.get("recipe"), Mapping):
            rank_zero_info(f"the checkpoint {path} does not say which recipe made it; the current recipe is used")
            return
        if made_by.get("module") != self.module:
            raise ValueError(
                f"the checkpoint {path} was made by {made_by.get('module')}, and {self.module} cannot go on with its "
                "optimiser, schedule and phases; to begin at phase 0 from its weights, leave --ckpt_path out and give "
                f"--model.init_args.policy.start_from {path}"
            )
        whole = self.whole_recipe and bool(made_by.get("whole_recipe"))
        changes = recipe_changes(made_by["recipe"], self.recipe, whole=whole)
        refused = [change for change in changes if not change.taken_over]
        if changes and not getattr(rank_zero_only, "rank", 0):
            Console(stderr=True).print(change_table(changes))
        self._told = path
        if refused and not self.allow_change:
            more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
            raise ValueError(
                f"the checkpoint {path} was made with a recipe that trains something else: "
                f"{', '.join(map(str, refused[:3]))}{more}; resume with the recipe that made it, give this one its own "
                f"folder (--name), start from the checkpoint's weights (model.policy.start_from), or resume anyway "
                f"with {ALLOW}"
            )

    def _let_go(self) -> None:
        for folder in self._held:
            release(folder)
        self._held = []
        for callback, save_last in self._without_last:
            callback.save_last = save_last
        self._without_last = []


def put_aside(folder: Path, checkpoints: set[Path]) -> None:
    """Move what an earlier run left into ``earlier-N``, so that a run that begins anew does not mix with it.

    Args:
        folder: The run's folder, with its metrics and trajectories.
        checkpoints: Folders of its checkpoints. Nothing is moved if none of them holds a whole one.
    """
    found = [path for place in checkpoints for path in place.glob("*.ckpt") if path.is_file()]
    if newest_whole(found, put_aside=False) is None:
        return
    number = 1
    while any((place / f"earlier-{number}").exists() for place in (folder, *checkpoints)):
        number += 1
    moved = [folder / name for name in _OF_A_RUN]
    moved += [path for place in checkpoints for path in (*place.glob("*.ckpt"), place / "rollouts")]
    for path in moved:
        if path.exists():
            aside = path.parent / f"earlier-{number}" / path.name
            aside.parent.mkdir(parents=True, exist_ok=True)
            path.replace(aside)
    aside = found[0].parent / f"earlier-{number}"
    rank_zero_info(
        f"this run starts from the beginning in the folder of an earlier one, whose files are now in {aside}; to "
        f"resume that one instead, stop this one and give --ckpt_path {aside / found[0].name}"
    )
