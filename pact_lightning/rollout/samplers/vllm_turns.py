"""What both ways to vLLM share: the fields of a request, the rows' tokens, and turns that have ended."""

from collections.abc import Sequence
from typing import Any

from pact_lightning.rollout.samplers.base import SamplingConfig, TurnOutput, TurnRequest


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
