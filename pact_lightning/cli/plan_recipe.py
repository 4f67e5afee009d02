"""Recipe reader of ``plan`` and ``compare``: parses recipes as ``fit`` does, and makes nothing of them."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import lightning.pytorch as pl
from jsonargparse import ArgumentParser

from pact_lightning.cli.fit import PactCLI
from pact_lightning.cli.yaml_loader import check_all_yaml
from pact_lightning.objectives.objective import Objective
from pact_lightning.plan.recipe import Recipe, recipe_of
from pact_lightning.rollout.samplers.base import SamplingConfig
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.training.phase_prompts import PhaseConfig
from pact_lightning.training.policy_module import PolicyModule
from pact_lightning.training.recipe_checks import OfModel, check_forwards, check_objective, check_phase
from pact_lightning.training.rollout_datamodule import RolloutDataModule
from pact_lightning.update.sampler_correction import cap_in_force
from pact_lightning.utils.imports import import_path


def read_recipe(arguments: Sequence[str], device_type: str | None = None) -> Recipe:
    """Read recipes and overrides as ``pact-lightning fit`` takes them.

    Args:
        arguments: ``-c recipe.yaml`` and what follows.
        device_type: ``cpu`` or ``cuda``, in place of the recipe's own.

    Raises:
        ValueError: The recipe does not train by rollouts, or has a mistake.
    """
    config = parsed_recipe(arguments)
    model, data = _init_args(config, "model", PACTModule), _init_args(config, "data", RolloutDataModule)
    recipe = recipe_of(model, data, config["trainer"], device_type)
    _check(model, data, recipe.processes)
    return recipe


def _check(model: dict[str, Any], data: dict[str, Any], processes: int) -> None:
    """Ask what ``fit`` asks before it loads a policy, of what needs no tokenizer, no tasks and no device.

    Raises:
        ValueError: A setting is wrong, or two do not go together.
    """
    made = _made(PACTModule, model) | _made(RolloutDataModule, data)
    check_forwards(model["head_chunk"], model["max_tokens_per_forward"])
    given = model["objective"]
    objective = import_path(given["class_path"], "model.objective")(**given.get("init_args", {})) if given else None
    check_objective(objective or Objective(), model["ratio_context"], model["anchor_probability"])
    given = model["sampler"]
    sampler = None if given is None else import_path(given["class_path"], "model.sampler")
    phase = PhaseConfig(
        sampling=SamplingConfig(data["temperature"]),
        credit=made["credit"],
        **{field.name: data[field.name] for field in fields(PhaseConfig) if field.name not in ("sampling", "credit")},
    )
    cap = cap_in_force(model["importance_cap"], sampler)
    check_phase(phase, OfModel(sampler, cap, model["trace_template"]), processes)


def _made(known: type, given: dict[str, Any]) -> dict[str, Any]:
    """Make the arguments of a class that are dataclasses, which check themselves."""
    kinds = get_type_hints(known.__init__)  # type: ignore[misc]  # of the class itself, as jsonargparse reads it
    return {
        name: kind(**given[name])
        for name, kind in kinds.items()
        if is_dataclass(kind) and isinstance(kind, type) and isinstance(given.get(name), dict)
    }


def parsed_recipe(arguments: Sequence[str]) -> dict[str, Any]:
    """Parse recipes and overrides as ``pact-lightning fit`` does, and return all fields.

    Args:
        arguments: ``-c recipe.yaml`` and what follows.

    Raises:
        ValueError: There is a mistake.
    """
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    # Lightning warns of arguments that are passed by mistake; these are the rest of a command line.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    check_all_yaml()
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
    config: dict[str, Any] = cli.config.as_dict()
    return config


class _ParsedRecipe(PactCLI):
    """A command line that is read and not run."""

    def instantiate_classes(self) -> None:
        """Make nothing: no tokenizer is read, and a recipe for a GPU can be planned without one."""

    def _parse_ckpt_path(self) -> None:
        """Look for no checkpoint: no command is run that could resume from one."""


def _init_args(config: dict[str, Any], part: str, known: type) -> dict[str, Any]:
    """Return the arguments of a class; those that a subclass does not have take the known class's defaults."""
    given = config.get(part) or {}
    class_path = given.get("class_path")
    found = None if class_path is None else import_path(class_path, part)
    if not (isinstance(found, type) and issubclass(found, known)):
        raise ValueError(
            f"plan knows recipes that train by rollouts, with pact_lightning.{known.__name__}, but {part} is "
            f"{class_path}"
        )
    parser = ArgumentParser()
    parser.add_class_arguments(known)
    defaults: dict[str, Any] = parser.get_defaults().as_dict()
    # dict_kwargs are those of a constructor whose **kwargs jsonargparse could not follow.
    return {**defaults, **given.get("init_args", {}), **given.get("dict_kwargs", {})}
