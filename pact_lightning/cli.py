"""The ``pact-lightning`` command: fit, validate, test and predict, configured by YAML recipes."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.cli import LightningCLI

from pact_lightning.policy_module import PolicyModule


class PactCLI(LightningCLI):
    """LightningCLI in subclass mode: a recipe names the module, the data, and their arguments."""


def main(args: Any = None) -> None:
    """Runs the command line."""
    PactCLI(
        PolicyModule,
        pl.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},
        args=args,
    )


if __name__ == "__main__":
    main()
