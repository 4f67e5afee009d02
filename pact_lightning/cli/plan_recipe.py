"""TODO cli.plan_recipe."""

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl

from pact_lightning.cli.fit import PactCLI
from pact_lightning.plan.recipe import Recipe, recipe_of
from pact_lightning.training.policy_module import PolicyModule


class _ParsedRecipe(PactCLI):
    """Reads recipes as ``fit`` does, and stops there."""

    def instantiate_classes(self) -> None:
        """Makes nothing: no tokenizer is read, and a recipe for a GPU can be planned without one."""

    def _parse_ckpt_path(self) -> None:
        """Looks for no checkpoint: there is no verb to go on with one."""


def read_recipe(arguments: Sequence[str], device_type: str | None = None) -> Recipe:
    """Reads recipes and overrides as ``pact-lightning fit`` takes them.

    Args:
        arguments: ``-c recipe.yaml`` and what follows.
        device_type: ``cpu`` or ``cuda``, where the recipe's own is not meant.

    Raises:
        ValueError: The recipe does not train by rollouts, or has a mistake.
    """
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    # Its word to people who pass arguments by mistake; what is passed here is the rest of a command line.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    given: Any = list(arguments)
    cli = _ParsedRecipe(
        PolicyModule,
        pl.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=None,
        run=False,
        parser_kwargs={"exit_on_error": False},
        args=given,
    )
    return recipe_of(cli.config.as_dict(), device_type)
