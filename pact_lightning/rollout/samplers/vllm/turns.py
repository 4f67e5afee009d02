"""Adapters and turns as vLLM takes them, from a server and from an engine in the same process alike.

Every version of the adapter gets a folder, a name and a number that no other version has had [D]. vLLM finds its cached
keys and values by an adapter's *name and path*: new weights under an old name and path are sampled with the cache of
the old ones, without an error. Under an old number the old weights stay.
"""

import itertools
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from pact_lightning.policy.loading import PolicyConfig
from pact_lightning.rollout.samplers.base import SamplingConfig, TurnOutput, TurnRequest

_RUN = uuid.uuid4().hex[:12]  # a server may outlive a run, or serve several
_NUMBERS = itertools.count(1)

UNCHANGED_DISTRIBUTION = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Fields that switch off all that could change the distribution. Without them a server takes these values from the
model's ``generation_config.json``, where Qwen3 has top-k 20 and top-p 0.95."""


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """Saved weights of the policy's adapter.

    Attributes:
        name: ``pact-<run>@<number>``.
        number: Number of the version, from 1 in each process.
        folder: Folder with ``adapter_model.safetensors`` and ``adapter_config.json``.
    """

    name: str
    number: int
    folder: Path


def check_has_adapter(config: PolicyConfig) -> None:
    """Check that the policy's weights can be handed over as an adapter.

    Raises:
        ValueError: The policy is trained in full.
    """
    if config.adapter == "full":
        raise ValueError(
            "vLLM gets the policy's new weights as an adapter, and model.policy.adapter is 'full'; set it to 'lora' or "
            "'qlora', or leave model.sampler out"
        )


@contextmanager
def saved_adapter(model: nn.Module, parent: str | None = None) -> Iterator[AdapterVersion]:
    """Save the adapter, never merged, to a folder that is removed at the end.

    Args:
        model: The policy.
        parent: Parent of the folder; by default the system's folder of temporary files.

    Raises:
        ValueError: The policy has no adapter.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise ValueError("the policy has no adapter to send")
    number = next(_NUMBERS)
    with TemporaryDirectory(prefix="pact-adapter-", dir=parent) as folder:
        # By its own default PEFT asks the hub whether the vocabulary has grown; ours never does.
        model.save_pretrained(folder, save_embedding_layers=False)
        yield AdapterVersion(f"pact-{_RUN}@{number}", number, Path(folder))


class VLLMTurns:
    """Tokens of every row; vLLM gets all of them for each turn, and finds most in its prefix cache.

    Args:
        stop_ids: Tokens that end a turn.
        sampling: Settings of the draws.
    """

    def __init__(self, stop_ids: Sequence[int], sampling: SamplingConfig) -> None:
        self._stop_ids = list(stop_ids)
        self._sampling = sampling
        self._tokens: dict[int, list[int]] = {}
        self._limits: dict[int, int] = {}

    def open(self, request: TurnRequest) -> list[int]:
        """Add a request's new tokens to its row and return all tokens of the row."""
        tokens = self._tokens.setdefault(request.row, [])
        tokens += request.new_ids
        self._limits[request.row] = request.max_new_tokens
        return list(tokens)

    def fields(self, request: TurnRequest) -> dict[str, Any]:
        """Return a request's fields, as ``SamplingParams`` and ``/v1/completions`` both name them."""
        return UNCHANGED_DISTRIBUTION | {
            "max_tokens": request.max_new_tokens,
            "seed": request.seed,
            "temperature": 0.0 if self._sampling.greedy else self._sampling.temperature,
            "logprobs": 0,  # those of the sampled tokens alone
            "stop_token_ids": self._stop_ids,
            "ignore_eos": True,  # the stop tokens of the model's generation_config do not count
        }

    def close(self, row: int, ids: Sequence[int], logps: Sequence[float]) -> TurnOutput:
        """Add the tokens of a turn that has ended to its row and return the turn.

        Raises:
            RuntimeError: vLLM has cut the turn before its limit.
        """
        finished = bool(ids) and ids[-1] in self._stop_ids
        limit = self._limits[row]
        if not finished and len(ids) < limit:
            raise RuntimeError(
                f"vLLM ended a turn after {len(ids)} of {limit} tokens and {len(self._tokens[row])} before it; its "
                "max_model_len must be at least data.max_prompt_tokens plus data.limits.max_trajectory_tokens"
            )
        self._tokens[row] += ids
        return TurnOutput(row, list(ids), list(logps), finished)

    def release(self, row: int) -> None:
        """Forget a row."""
        del self._tokens[row], self._limits[row]
