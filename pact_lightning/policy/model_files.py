"""Configuration and tokenizer of a model, read by transformers, or refused in a sentence that says what is wrong."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def read_config(source: str, model: str, given: Mapping[str, Any]) -> "PretrainedConfig":
    """Read a model's configuration.

    Args:
        source: Its folder or hub id.
        model: ``policy.model``, for errors.
        given: Further arguments of ``from_pretrained``.

    Raises:
        OSError: A file is missing or broken, or the hub is out of reach.
        ValueError: transformers does not know the model's type.
    """
    from transformers import AutoConfig, __version__

    maker: Any = AutoConfig
    try:
        with named(source, model):
            # Otherwise transformers would ask at the terminal whether it may run code that came with the model.
            config: PretrainedConfig = maker.from_pretrained(source, trust_remote_code=False, **given)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"transformers {__version__} cannot read the configuration of policy.model {model!r}: {_first(error)}. "
            "Upgrade transformers if the model is newer, or give a model of a type that it knows; code that comes with "
            "a model is not run"
        ) from error
    return config


def read_tokenizer(source: str, model: str, given: Mapping[str, Any]) -> "PreTrainedTokenizerBase":
    """Read a model's tokenizer; see :func:`read_config`.

    Raises:
        OSError: A file is missing or broken, or the hub is out of reach.
        ValueError: The files make no tokenizer.
    """
    from transformers import AutoTokenizer

    folder = Path(source)
    if folder.is_dir() and not given and not any(any(folder.glob(f"{part}*")) for part in ("tokenizer", "vocab")):
        raise FileNotFoundError(
            f"the model folder {source} has no tokenizer; copy the model's tokenizer.json, tokenizer_config.json and "
            "chat_template.jinja into it"
        )
    maker: Any = AutoTokenizer
    try:
        with named(source, model):
            tokenizer: PreTrainedTokenizerBase = maker.from_pretrained(source, trust_remote_code=False, **given)
    except (ValueError, KeyError) as error:
        read_config(source, model, given)  # a tokenizer is looked for by the model's type
        raise ValueError(
            f"the tokenizer of policy.model {model!r} cannot be read: {_first(error)}; copy tokenizer.json and "
            "tokenizer_config.json of the model again"
        ) from error
    return tokenizer


@contextmanager
def named(source: str, model: str) -> Iterator[None]:
    """Put the recipe's field in front of an error of a file or of the hub's client."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if Path(source).is_dir():
            raise OSError(f"a file of policy.model {model!r} cannot be read: {_first(error)}; copy it again") from error
        raise OSError(
            f"policy.model {model!r} is not a local folder, and it could not be loaded from the hub: "
            f"{str(error).rstrip('.')}. Give a folder or correct the id (for `plan`, config.json alone is enough)"
        ) from error


def _first(error: Exception) -> str:
    """Return the first sentence of an error that may have many lines."""
    return " ".join(str(error).split()).partition(". ")[0].rstrip(".")
