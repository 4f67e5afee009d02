"""Choice of a renderer: by name, or by what the tokenizer's own chat template writes."""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from pact_lightning.dialogue.family import FamilyRenderer
from pact_lightning.dialogue.family_library import library_families
from pact_lightning.dialogue.renderer import Renderer
from pact_lightning.dialogue.rendering import CHATML, ChatRenderer
from pact_lightning.dialogue.template_check import Difference, first_difference
from pact_lightning.dialogue.text_codec import TextCodec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUTO = "auto"
_log = logging.getLogger(__name__)

_OWN_NAMES = (CHATML, "qwen3")
_BY_MODEL_TYPE = {
    "deepseek_v3": "deepseek-v3",
    "deepseek_v4": "deepseek-v4",
    "gemma4": "gemma4",
    "gemma4_text": "gemma4",
    "glm4_moe": "glm-4.5",
    "glm4_moe_lite": "glm-5",
    "glm_moe_dsa": "glm-5",
    "gpt_oss": "gpt-oss",
    "llama": "llama-3",
    "minimax_m2": "minimax-m2",
    "nemotron_h": "nemotron-3",
    "qwen3_5": "qwen3.5",
    "qwen3_5_moe": "qwen3.5",
    "qwen3_5_moe_text": "qwen3.5",
    "qwen3_5_text": "qwen3.5",
    "qwen3_vl": "qwen3-vl",
}
"""Families of models whose tokenizer comes without a template, by ``model_type`` in their ``config.json``."""


_BY_REFERENCE = ("gpt-oss",)
"""Families that the maker's own encoder writes, which also checks the vocabulary; their templates differ in details."""


def make_renderer(
    tokenizer: "PreTrainedTokenizerBase",
    family: str = AUTO,
    *,
    end_ids: Iterable[int] = (),
    model_type: Callable[[], str | None] = lambda: None,
    allow_difference: bool = False,
) -> Renderer:
    """Make the renderer of a tokenizer.

    ``auto`` takes this package's ChatML where the tokenizer's own template writes the same, else the family of
    ``renderers`` that does; without a template, the family of the model's type.

    Args:
        tokenizer: The tokenizer.
        family: ``auto``, ``chatml`` (Qwen3, Qwen2.5, SmolLM2), or a family of ``renderers``.
        end_ids: Tokens that end a turn beside the family's own.
        model_type: Gives the model's type; asked only where the template does not say enough.
        allow_difference: Whether a rendering that differs from the template is only logged.

    Raises:
        ImportError: A family of ``renderers`` is asked for, which is not installed.
        ValueError: No family fits, or the one that is asked for differs from the template.
    """
    codec = TextCodec(tokenizer)
    ends = tuple(end_ids)
    if family != AUTO:
        return _agreeing(_named(codec, family, ends), allow_difference=allow_difference)
    own = _own(codec, ends)
    if not tokenizer.chat_template:
        kind = model_type()
        if kind == "llama" and own is not None:  # a Llama that speaks ChatML, as SmolLM2 does
            return own
        return _named(codec, _BY_MODEL_TYPE.get(kind or "", CHATML), ends)
    difference = None if own is None else first_difference(own)
    if own is not None and difference is None:
        return own
    likely = _BY_MODEL_TYPE.get(model_type() or "")
    nearest: tuple[Renderer, Difference] | None = None if own is None or difference is None else (own, difference)
    for renderer in _of_library(codec, ends, likely):
        found = first_difference(renderer)
        if found is None or renderer.family in _BY_REFERENCE:
            return _agreeing(renderer, allow_difference=True)
        if nearest is None or renderer.family == likely or found.token > nearest[1].token:
            nearest = (renderer, found)
    if nearest is None:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} has the control tokens of no known format; take a model of one "
            f"of these families: {_list()}"
        )
    if not allow_difference:
        raise ValueError(
            f"the chat template of the tokenizer {tokenizer.name_or_path!r} is of no known family. The nearest, "
            f"{nearest[0].family!r}: it {nearest[1].text}. The policy would have to learn another format than its own; "
            "set model.policy.renderer to a family and model.policy.allow_template_difference to true to train it on "
            f"that one all the same. Families: {_list()}"
        )
    return _agreeing(nearest[0] if own is None else own, allow_difference=True)


def _agreeing(renderer: Renderer, *, allow_difference: bool) -> Renderer:
    difference = first_difference(renderer)
    if difference is None:
        return renderer
    if not allow_difference and renderer.family not in _BY_REFERENCE:
        raise ValueError(
            f"the chat template of the tokenizer {renderer.codec.tokenizer.name_or_path!r} {difference.text}. The "
            "policy would have to learn another format than its own; set model.policy.renderer to another family "
            f"({_list()}), or model.policy.allow_template_difference to true to train it on this one"
        )
    _log.warning("the tokenizer's chat template %s; trained is the format %s", difference.text, renderer.family)
    return renderer


def _named(codec: TextCodec, family: str, ends: tuple[int, ...]) -> Renderer:
    if family not in _OWN_NAMES and family not in library_families():
        raise ValueError(f"there is no format {family!r} for policy.renderer; choose {AUTO}, or one of {_list()}")
    return ChatRenderer(codec, ends) if family in _OWN_NAMES else FamilyRenderer(codec, family, ends)


def _own(codec: TextCodec, ends: tuple[int, ...]) -> ChatRenderer | None:
    try:
        return ChatRenderer(codec, ends)
    except ValueError:
        return None


def _of_library(codec: TextCodec, ends: tuple[int, ...], likely: str | None) -> Iterator[FamilyRenderer]:
    """Make every renderer of the library whose control tokens the tokenizer has, the likely one first."""
    try:
        names = library_families()
    except ImportError:
        _log.warning("only ChatML is known here: pip install 'pact-lightning[families]' for Llama 3, gpt-oss, GLM, ...")
        return
    for name in sorted(names, key=lambda name: name != likely):
        try:
            yield FamilyRenderer(codec, name, ends)
        except ValueError:
            continue


def _list() -> str:
    try:
        return ", ".join((CHATML, *library_families()))
    except ImportError:
        return f"{CHATML}, and with pip install 'pact-lightning[families]' those of the library renderers"
