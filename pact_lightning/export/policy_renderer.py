"""Renderer of a policy, as its config names it or its tokenizer's template tells."""

from functools import partial
from typing import TYPE_CHECKING

from pact_lightning.dialogue.families import make_renderer
from pact_lightning.dialogue.renderer import Renderer
from pact_lightning.policy.loading import PolicyConfig, load_end_ids, load_model_type

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def renderer_of(config: PolicyConfig, tokenizer: "PreTrainedTokenizerBase") -> Renderer:
    """Make the renderer of a policy; see :func:`~pact_lightning.dialogue.families.make_renderer`.

    Args:
        config: The policy.
        tokenizer: Its tokenizer.

    Raises:
        ImportError: The family needs ``renderers``, which is not installed.
        OSError: A file of the model is missing or broken.
        ValueError: No family fits.
    """
    return make_renderer(
        tokenizer,
        config.renderer,
        end_ids=load_end_ids(config),
        model_type=partial(load_model_type, config),
        allow_difference=config.allow_template_difference,
    )
