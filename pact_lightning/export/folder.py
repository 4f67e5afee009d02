"""Folder of an export: weights, tokenizer, chat template, generation config and card, written whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pact_lightning.dialogue.chat_template import package_template
from pact_lightning.dialogue.renderer import Renderer
from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.export.card import CardForm, is_export, model_card
from pact_lightning.export.policy_renderer import renderer_of
from pact_lightning.export.trained import TrainedPolicy
from pact_lightning.policy.loading import PolicyConfig, load_tokenizer
from pact_lightning.policy.saving import Form, check_form, save_policy

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase


def write_export(trained: TrainedPolicy, folder: Path, form: Form, *, name: str | None = None) -> None:
    """Write a policy to a folder that transformers, or PEFT, loads.

    Args:
        trained: The policy; it stays as it is.
        folder: Output folder. An earlier export in it is replaced.
        form: A model that stands alone, or an adapter.
        name: Name of the model in its card, by default the folder's.

    Raises:
        FileExistsError: The folder holds something else.
        FileNotFoundError: The base is not there.
        ValueError: The weights do not fit it, or the policy has no adapter.
    """
    check_form(trained.config, form)
    check_folder(folder, trained.config)
    with whole_folder(folder) as partial:
        save_policy(trained.config, trained.state, partial, form)
        write_rest(trained, partial, form, name or folder.name)


def write_rest(trained: TrainedPolicy, folder: Path, form: CardForm, name: str) -> None:
    """Write what belongs to the weights: tokenizer with its chat template, generation config, card.

    Args:
        trained: The policy.
        folder: The folder of the weights.
        form: What they are.
        name: Name of the model in its card.
    """
    tokenizer = load_tokenizer(trained.config)
    renderer = renderer_of(replace(trained.config, allow_template_difference=True), tokenizer)
    generation_config(trained, renderer).save_pretrained(folder)
    if form != "gguf":
        save_tokenizer(tokenizer, renderer, folder)
    model_card(trained, form, name).save(folder / "README.md")


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", renderer: Renderer, folder: Path) -> None:
    """Write the tokenizer with a chat template of the format that the policy was trained in.

    Of ChatML the tokenizer's own, where it has one, differs from it over several turns: most take earlier thinking
    out [D]. Other families keep theirs.
    """
    if isinstance(renderer, ChatRenderer):
        tokenizer.chat_template = package_template(
            opens_thinking=renderer.opens_thinking, default_system=renderer.default_system
        )
    tokenizer.save_pretrained(folder)


def generation_config(trained: TrainedPolicy, renderer: Renderer) -> "GenerationConfig":
    """Make a config by which ``generate`` ends where a rollout ended, and samples as the policy was scored.

    The base's own may have a repetition penalty or a temperature that the policy was never trained or scored with [D].
    """
    data = trained.recipe.get("data") or {}
    temperature = float(((data.get("init_args") or {}).get("evaluation") or {}).get("temperature") or 0.0)
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    tokenizer = renderer.codec.tokenizer
    pad = tokenizer.pad_token_id
    from transformers import GenerationConfig

    maker: Any = GenerationConfig  # untyped
    config: GenerationConfig = maker(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(renderer.end_ids),
        pad_token_id=_end_of_turn(renderer) if pad is None else pad,
        **sampling,
    )
    return config


def _end_of_turn(renderer: Renderer) -> int:
    return renderer.end_of_turn if isinstance(renderer, ChatRenderer) else min(renderer.end_ids)


def check_folder(folder: Path, config: PolicyConfig) -> None:
    """Refuse a folder that an export would have to overwrite.

    Args:
        folder: Output folder.
        config: The policy, whose base may lie in a folder too.

    Raises:
        FileExistsError: It is a file, holds the base, or something that is no export of this package.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; give a folder for the export")
    if folder.is_dir() and folder.resolve() == Path(config.model).expanduser().resolve():
        raise FileExistsError(f"{folder} is the folder of the base model; give another one for the export")
    if folder.is_dir() and any(folder.iterdir()) and not is_export(folder):
        raise FileExistsError(f"{folder} contains files that are not an export of pact-lightning; give another folder")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Lend a new folder to write to, which takes the place of ``folder`` once the context ends without an error."""
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
