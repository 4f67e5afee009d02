"""The present adapter as vLLM takes it: a folder, a name and a number that no other version has had.

vLLM finds its cached keys and values again by an adapter's *name and path*. New weights under an old name and path are
sampled with what the old ones left in the cache, without an error; and an old number keeps the old weights. So nothing
is ever used twice [D].

What both ways to vLLM share: the fields of a request, the rows' tokens, and turns that have ended.
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


class VLLMTurns:
    """Keeps the tokens of every row: vLLM is told all of them for each turn, and finds most in its prefix cache.

    Args:
        stop_ids: Tokens that end a turn.
        sampling: How tokens are drawn.
    """

    def __init__(self, stop_ids: Sequence[int], sampling: SamplingConfig) -> None:
        self._stop_ids = list(stop_ids)
        self._sampling = sampling
        self._tokens: dict[int, list[int]] = {}
        self._limits: dict[int, int] = {}

    def open(self, request: TurnRequest) -> list[int]:
        """Adds a request's new tokens to its row; returns all tokens of the row."""
        tokens = self._tokens.setdefault(request.row, [])
        tokens += request.new_ids
        self._limits[request.row] = request.max_new_tokens
        return list(tokens)

    def fields(self, request: TurnRequest) -> dict[str, Any]:
        """A request's fields, as ``SamplingParams`` and ``/v1/completions`` both name them.

        All that could change the distribution is switched off by name: left out, a server takes it from the model's
        ``generation_config.json``, where Qwen3 has top-k 20 and top-p 0.95.
        """
        return {
            "max_tokens": request.max_new_tokens,
            "seed": request.seed,
            "temperature": 0.0 if self._sampling.greedy else self._sampling.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "logprobs": 0,  # of the sampled tokens alone
            "stop_token_ids": self._stop_ids,
            "ignore_eos": True,  # ours are the stop tokens, not those of the model's generation_config
        }

    def close(self, row: int, ids: Sequence[int], logps: Sequence[float]) -> TurnOutput:
        """Takes a turn that has ended.

        Raises:
            RuntimeError: vLLM cut it before its limit.
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
        """Forgets a row."""
        del self._tokens[row], self._limits[row]
