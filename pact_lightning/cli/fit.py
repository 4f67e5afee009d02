"""Commands fit, validate, test and predict: a LightningCLI that is configured by YAML recipes."""

import argparse
import errno
import logging
import sys
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info

from pact_lightning.cli.command_table import DESCRIPTION, VERBS
from pact_lightning.cli.errors import end
from pact_lightning.cli.nearest import TOP, did_you_mean
from pact_lightning.cli.run_name import put_into_run_folder, remove_if_empty
from pact_lightning.cli.yaml_loader import check_all_yaml
from pact_lightning.resume.checkpoint_files import CheckpointNotWrittenError, is_remote, read_checkpoint
from pact_lightning.resume.last_checkpoint import (
    check_resumable,
    evaluated_checkpoint,
    go_on_in_its_folder,
    last_checkpoint,
)
from pact_lightning.resume.recipe_change import ALLOW
from pact_lightning.rollout.samplers.base import SamplerUnavailableError
from pact_lightning.training.policy_module import PolicyModule
from pact_lightning.training.trainer_checks import check_plugins, check_trainer
from pact_lightning.utils.errors import NotResumableError, RunStoppedError
from pact_lightning.utils.yaml_text import check_yaml_file

_RECIPE = ("-c", "--config")
_FREE = ("--help", "--print_config")
_FURTHER_HELP = (
    "The fields of a recipe's classes, with meaning, type and default: --model.help pact_lightning.PACTModule, "
    "--data.help pact_lightning.RolloutDataModule, --trainer.callbacks.help pact_lightning.AnnealingCallback. "
    "On the command line they are options: --data.init_args.temperature 0.8."
)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_RECIPE_PARTS = ("seed_everything", "model", "data", "trainer")
_LONGEST_PATH = 1000
_CHECKPOINT_WORDS = ("last", "best", "hpc", "registry")
_WHICH_CHECKPOINT = "give a file that ModelCheckpoint wrote, or `last` for the newest complete one in its dirpath"


def run_lightning(args: list[str] | None, cli: "Callable[..., PactCLI] | None" = None) -> None:
    """Run one of Lightning's commands; a mistake in recipe or data ends in one sentence and exit status 2.

    Args:
        args: Arguments in place of those of the process.
        cli: Makes the command line; by default :class:`PactCLI`.
    """
    silence_libraries()
    check_all_yaml()
    arguments: Any = args
    given = sys.argv[1:] if args is None else args
    # An option in front of the command is found only by a parser that has all of them.
    verbs = [given[0]] if given and given[0] in VERBS else list(VERBS)
    # An evaluation may share the folder of a fit, whose own settings stay there.
    config_file = "config.yaml" if "fit" in verbs else f"config-{verbs[0]}.yaml"
    try:
        (cli or PactCLI)(
            PolicyModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None if verbs == ["fit"] else SaveConfigCallback,  # a fit saves its own as it begins
            auto_configure_optimizers=False,  # the module makes its own, see model.optimizer
            save_config_kwargs={"overwrite": True, "config_filename": config_file},
            parser_kwargs={verb: {"exit_on_error": False, "epilog": _FURTHER_HELP} for verb in verbs}
            | {"exit_on_error": False, "description": DESCRIPTION},
            args=arguments,
            verbs=verbs,
        )
    except (RunStoppedError, NotResumableError) as error:
        # The user's own server or reward failed, or a checkpoint's rollouts are gone: a traceback of ours would not
        # help. Before the policy is loaded, a sampler that is unavailable may be a mistake in the recipe.
        if not _at_work():
            remove_if_empty(getattr(PactCLI.latest, "trainer", None))
        end(error, 2 if isinstance(error, SamplerUnavailableError) and not _at_work() else 1)
    except (ValueError, OSError, ImportError, TypeError, argparse.ArgumentError, MisconfigurationException) as error:
        if isinstance(error, CheckpointNotWrittenError):
            end(error, 1)
        if isinstance(error, OSError) and error.errno in _NO_ROOM:  # at work too
            end(OSError(f"{error}; free some disk space, and resume with --ckpt_path last"), 1)
        if _at_work():
            raise
        remove_if_empty(getattr(PactCLI.latest, "trainer", None))
        end(error, 2)


def _at_work() -> bool:
    """Return whether the policy is loaded: from there on an error is no mistake in a recipe."""
    model = getattr(PactCLI.latest, "model", None)
    return isinstance(model, PolicyModule) and model.policy is not None


def silence_libraries() -> None:
    """Silence libraries' messages that a user can do nothing about."""
    # Lightning's own use of torch.utils._pytree.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # Lightning looks at every attribute of a model once, transformers' deprecated ones included.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    # A fit without validation tasks, which the recipe asks for.
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
    # Of steps that keep a copy of the weights before them, as no module of this package does.
    warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
    # Lightning recommends packages of its own in every run.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip: For seamless" not in record.getMessage()


class PactCLI(LightningCLI):
    """LightningCLI in subclass mode: a recipe names the module, the data, and their arguments."""

    latest: "PactCLI | None" = None

    def __init__(self, *args: Any, verbs: Collection[str] = tuple(VERBS), **kwargs: Any) -> None:
        """Parse the command line and do what it says.

        Args:
            *args: As for LightningCLI.
            verbs: The commands to be set up; each of their parsers takes a while.
            **kwargs: As for LightningCLI.
        """
        PactCLI.latest = self
        self._verbs = verbs
        super().__init__(*args, **kwargs)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning asks its instance too
        """Return the commands that are set up, and arguments of their methods that are no options."""
        return {verb: skipped for verb, skipped in LightningCLI.subcommands().items() if verb in self._verbs}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that are the command's own."""
        parser.add_argument("--name", type=str | None, default=None, help="Name of the run's folder.")
        parser.add_argument(
            ALLOW, type=bool, default=False, help="Resume although the recipe now trains something else."
        )

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Check the order of the command line, then parse it."""
        if args is None or isinstance(args, list):
            self._given = sys.argv[1:] if args is None else args
            _check_option_order(self._given)
            _check_what_is_given(self._given)
            _check_recipes(self._given)
        super().parse_arguments(parser, args)

    def instantiate_classes(self) -> None:
        """Make trainer, module and data; all loggers of a run write to the same version."""
        stated = self.config[self.subcommand]
        put_into_run_folder(stated, self._given)
        super().instantiate_classes()
        config = self.config_init[self.subcommand]
        if config.get("weights_only") is None:
            # Lightning's own default unpickles whatever a checkpoint behind a URL holds.
            config["weights_only"] = True
        if config.get("ckpt_path") == "last":
            choose = last_checkpoint if self.subcommand == "fit" else evaluated_checkpoint
            config["ckpt_path"] = choose(self.trainer, config["weights_only"])
        for logger in self.trainer.loggers[1:]:
            # Each would count the folders itself, and disagree once the first has made its own.
            if hasattr(logger, "_version"):
                logger._version = self.trainer.loggers[0].version
        if self.subcommand == "fit":
            self._tell_recipe(stated, config["ckpt_path"])

    def _tell_recipe(self, stated: Any, ckpt_path: Any) -> None:
        """Tell the module the recipe that its checkpoints name, and check the one that the fit goes on from."""
        folder = self.model.run_folder
        folder.allow_change = stated.pop(ALLOW.removeprefix("--"))
        folder.config = self._parser("fit").dump(stated, skip_none=False)
        folder.recipe = {part: value for part, value in yaml.safe_load(folder.config).items() if part in _RECIPE_PARTS}
        folder.whole_recipe = True
        if isinstance(ckpt_path, str) and ckpt_path not in _CHECKPOINT_WORDS and Path(ckpt_path).is_file():
            plain = self.config_init["fit"]["weights_only"]
            checkpoint = read_checkpoint(Path(ckpt_path), weights_only=plain, check=False)
            go_on_in_its_folder(self.trainer, Path(ckpt_path), checkpoint)
            folder.check_made_by(Path(ckpt_path), checkpoint)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Make the Trainer; a plugin that no run can use is refused before Lightning starts it."""
        check_plugins(self.config_init[self.subcommand].trainer.plugins)
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Refuse Trainer settings that a fit cannot honour, with our sentence rather than Lightning's."""
        check_trainer(self.trainer)

    def before_validate(self) -> None:
        """Leave the table of scores to the module; Lightning's own would repeat it."""
        self.config_init["validate"]["verbose"] = False

    def before_test(self) -> None:
        """Leave the table of scores to the module."""
        self.config_init["test"]["verbose"] = False

    def _parse_ckpt_path(self) -> None:
        """Check a checkpoint that is named by its path, before Lightning asks it for hyperparameters.

        Raises:
            FileNotFoundError: It is not there.
            TypeError: It holds more than weights and plain values.
            ValueError: It is not whole, or a fit cannot go on from it.
        """
        config = self.config[self.config.subcommand]
        path = config.get("ckpt_path")
        if not isinstance(path, str) or path in _CHECKPOINT_WORDS or is_remote(path):
            return
        if not Path(path).exists():
            raise FileNotFoundError(f"there is no checkpoint {path}; {_WHICH_CHECKPOINT}")
        if not Path(path).is_file():
            raise ValueError(f"{path} is a folder, not a checkpoint; {_WHICH_CHECKPOINT}")
        plain = config.get("weights_only") is not False
        try:
            checkpoint = read_checkpoint(Path(path), weights_only=plain)
        except ValueError as error:
            raise ValueError(f"{error}; {_WHICH_CHECKPOINT}") from error
        if self.config.subcommand == "fit":
            check_resumable(Path(path), checkpoint)
        if "hyper_parameters" not in checkpoint:
            return
        if plain:
            super()._parse_ckpt_path()
        else:  # Lightning cannot read them from such a file
            rank_zero_info(f"the hyperparameters in {path} are ignored; the recipe's are used")


def _check_what_is_given(arguments: Sequence[str]) -> None:
    """Refuse options of other Lightning programs, and a command without a recipe, in words of this one.

    Args:
        arguments: The command line, from the verb on.

    Raises:
        ValueError: There is such an option, or neither a recipe nor a model.
    """
    for word in arguments:
        option = word.partition("=")[0].split(".")[0]
        if option in ("--optimizer", "--lr_scheduler"):
            raise ValueError(
                f"there is no {option}; set --model.init_args.optimizer.learning_rate and its neighbours (schedule, "
                "schedule_steps, warmup_steps, weight_decay, gradient_clip)"
            )
    helps = any(
        word.startswith(("-h", "--help", "--print_config")) or word.partition("=")[0].endswith(".help")
        for word in arguments
    )
    recipe = any(word.partition("=")[0] in (*_RECIPE, "--model", "--data") for word in arguments)
    if arguments and arguments[0] in VERBS and not recipe and not helps:
        raise ValueError(
            f"{arguments[0]} needs a recipe: give it with -c, as in `pact-lightning {arguments[0]} -c my.yaml`"
        )


def _check_recipes(arguments: Sequence[str]) -> None:
    """Refuse a recipe that cannot be read, by its name and line, before it is parsed.

    Raises:
        ValueError: A recipe is no YAML object, or grows without bound.
    """
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, is_joined, joined = word.partition("=")
        path = Path(joined if is_joined else following)
        if option not in _RECIPE or len(str(path)) > _LONGEST_PATH:
            continue
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give the recipe file in it")
        if path.is_file():
            check_yaml_file(path)
            _check_fields(path)


def _check_fields(path: Path) -> None:
    """Refuse an empty field that no recipe has; the parser refuses those that hold something.

    Raises:
        ValueError: There is one.
    """
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:  # the parser tells where
        return
    for name, value in recipe.items() if isinstance(recipe, dict) else ():
        if value == {} and name not in TOP:
            raise ValueError(f"{path}: there is no field {name!r}{did_you_mean(str(name), TOP)}")


def _check_option_order(arguments: Sequence[str]) -> None:
    """Refuse options in front of a recipe, which would override them silently.

    Args:
        arguments: The command line, from the verb on.

    Raises:
        ValueError: There is such an option.
    """
    recipes = [
        number
        for number, word in enumerate(arguments)
        if word in _RECIPE or word.startswith(tuple(f"{option}=" for option in _RECIPE))
    ]
    if not recipes:
        return
    for word in arguments[: recipes[-1]]:
        option = word.partition("=")[0]
        if option.startswith("--") and option not in (*_RECIPE, *_FREE):
            raise ValueError(
                f"{option} comes before a recipe ({' '.join(arguments[recipes[-1] : recipes[-1] + 2])}), which "
                "would override it; put options after the recipes"
            )
