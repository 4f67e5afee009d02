"""The present adapter as vLLM takes it: a folder, a name and a number that no other version has had.

vLLM finds its cached keys and values again by an adapter's *name and path*. New weights under an old name and path are
sampled with what the old ones left in the cache, without an error; and an old number keeps the old weights. So nothing
is ever used twice [D].
"""

import itertools
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from pact_lightning.policy.loading import PolicyConfig

_RUN = uuid.uuid4().hex[:12]  # a server may outlive a run, or serve several
_NUMBERS = itertools.count(1)


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One version of the policy.

    Attributes:
        name: ``pact-<run>@<number>``.
        number: From 1, within this process.
        folder: Holds ``adapter_model.safetensors`` and ``adapter_config.json``.
    """

    name: str
    number: int
    folder: Path


def check_has_adapter(config: PolicyConfig) -> None:
    """Refuses a policy whose weights cannot be handed over as an adapter.

    Raises:
        ValueError: It is trained in full.
    """
    if config.adapter == "full":
        raise ValueError(
            "vLLM gets the policy's new weights as an adapter, and model.policy.adapter is 'full'; set it to 'lora' or "
            "'qlora', or leave model.sampler out"
        )


@contextmanager
def saved_adapter(model: nn.Module, parent: str | None = None) -> Iterator[AdapterVersion]:
    """Saves the adapter, never merged, for as long as it is sampled with.

    Args:
        model: The policy.
        parent: Where the folder is made; by default where the system keeps temporary files.

    Raises:
        ValueError: The policy has no adapter.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise ValueError("the policy has no adapter to hand over")
    number = next(_NUMBERS)
    with TemporaryDirectory(prefix="pact-adapter-", dir=parent) as folder:
        # By its own default PEFT asks the hub whether the vocabulary has grown; ours never does.
        model.save_pretrained(folder, save_embedding_layers=False)
        yield AdapterVersion(f"pact-{_RUN}@{number}", number, Path(folder))
