"""Sampler backend by a vLLM server: it gets token ids, and the adapter anew for each run of rollouts."""

import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pact_lightning.policy.loading import PolicyConfig
from pact_lightning.rollout.samplers.base import LentPolicy, Sampler, SamplingConfig, TurnOutput, TurnRequest
from pact_lightning.rollout.samplers.vllm.client import VLLMClient, VLLMServerError
from pact_lightning.rollout.samplers.vllm.turns import (
    UNCHANGED_DISTRIBUTION,
    VLLMTurns,
    check_has_adapter,
    saved_adapter,
)
from pact_lightning.utils.endpoint import api_key, check_base_url

_log = logging.getLogger(__name__)


class VLLMServer:
    """vLLM server of the policy's base, which gets every version of the adapter, never merged.

    Each run of rollouts saves the adapter to a fresh folder, loads it under a fresh name, and removes both at the end.

    Args:
        base_url: Address of the server, version included, such as ``http://127.0.0.1:8000/v1``. Prompts and tool
            responses are sent there, never a trace.
        adapter_folder: Parent of the adapter's folders; the server must see it under the same path. By default the
            system's folder of temporary files, which is enough for a server on the same machine.
        concurrency: Most turns at the server at the same time; further ones wait.
        retries: Most repetitions of a request after a 408, 409, 429, 5xx, a timeout or a broken connection.
        timeout_s: Seconds that one try of one turn may take.
        api_key_env: Environment variable that holds the server's key; empty for a server that needs none.

    Raises:
        ImportError: The ``openai`` package is missing.
        ValueError: The address is invalid or holds a key, or a number is out of range.
    """

    keeps_weights = True

    def __init__(
        self,
        base_url: str,
        *,
        adapter_folder: str | None = None,
        concurrency: int = 64,
        retries: int = 5,
        timeout_s: float = 600.0,
        api_key_env: str = "",
    ) -> None:
        if importlib.util.find_spec("openai") is None:
            raise ImportError(
                "sampling by a vLLM server needs the openai package: pip install 'pact-lightning[vllm-server]'"
            )
        check_base_url(base_url)
        if concurrency < 1 or retries < 0 or timeout_s <= 0:
            raise ValueError("a vLLM server needs concurrency >= 1, retries >= 0 and timeout_s > 0")
        self.adapter_folder = adapter_folder
        self.concurrency = concurrency
        self._base_url = base_url
        self._api_key_env = api_key_env
        self._connect = partial(VLLMClient, base_url, api_key_env, retries, timeout_s)
        self._temperatures_known: set[float] = {1.0}

    def check(self, config: PolicyConfig) -> None:
        """Check, before the policy is loaded, that the server answers and loads adapters.

        Raises:
            ValueError: The policy has no adapter, or the environment variable of the key is not set.
            OSError: The folder for adapters is missing, or a request to the server failed.
        """
        check_has_adapter(config)
        api_key(self._api_key_env)
        if self.adapter_folder is not None and not Path(self.adapter_folder).is_dir():
            raise FileNotFoundError(f"there is no folder {self.adapter_folder}; create it, or change adapter_folder")
        with self._connect() as client:
            client.models()
            client.check_adapters_can_be_loaded()

    @contextmanager
    def lend(self, policy: LentPolicy, sampling: SamplingConfig) -> Iterator[Sampler]:
        """Lend a sampler for the policy's adapter, which is in the server for that time.

        Raises:
            VLLMServerError: The server cannot load the adapter, or reports other log-probabilities than it samples by.
        """
        with self._connect() as client, saved_adapter(policy.model, self.adapter_folder) as version:
            client.load(version)
            pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="vllm")
            try:
                if not sampling.greedy:
                    self._check_temperature(client, version.name, policy.stop_ids[0], sampling.temperature)
                yield _ServerSampler(client, version.name, VLLMTurns(policy.stop_ids, sampling), pool)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                _unload(client, version.name)

    def _check_temperature(self, client: VLLMClient, model: str, token: int, temperature: float) -> None:
        """Check that the server reports log-probabilities at the temperature that it samples at.

        By default vLLM reports those of temperature 1. The spread of the five likeliest tokens shows which it reports.

        Raises:
            VLLMServerError: The server reports those of temperature 1.
        """
        if temperature in self._temperatures_known:
            return
        reported, at_one = (_spread(client, model, token, tried) for tried in (temperature, 1.0))
        if abs(reported * temperature - at_one) > abs(reported - at_one):
            raise VLLMServerError(
                f"the vLLM server {self._base_url} reports log-probabilities of temperature 1, and rollouts are "
                f"sampled at {temperature:g}; start it with --logprobs-mode processed_logprobs"
            )
        self._temperatures_known.add(temperature)


class _ServerSampler:
    """Sampler that sends one request per turn, many at a time; the server batches them."""

    def __init__(self, client: VLLMClient, model: str, turns: VLLMTurns, pool: ThreadPoolExecutor) -> None:
        self._client = client
        self._model = model
        self._turns = turns
        self._pool = pool
        self._row_of: dict[Future[Mapping[str, Any]], int] = {}

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        """Send turns to the server."""
        for request in requests:
            tokens = self._turns.open(request)
            body = {"model": self._model, "prompt": tokens, **self._turns.fields(request)}
            self._row_of[self._pool.submit(self._client.complete, body)] = request.row

    def step(self) -> list[TurnOutput]:
        """Wait until a turn has ended and return all that have.

        Raises:
            VLLMServerError: The request of a turn failed.
        """
        ended, _ = wait(self._row_of, return_when=FIRST_COMPLETED)
        outputs = []
        for future in [future for future in self._row_of if future in ended]:  # in order of the requests
            row, choice = self._row_of.pop(future), future.result()
            outputs.append(self._turns.close(row, choice["token_ids"], choice["logprobs"]["token_logprobs"]))
        return outputs

    def release(self, row: int) -> None:
        """Forget a finished row; the server empties its prefix cache by itself."""
        self._turns.release(row)


def _spread(client: VLLMClient, model: str, token: int, temperature: float) -> float:
    """Return the distance between the highest and the fifth highest log-probability after one token."""
    fields = {"prompt": [token], "max_tokens": 1, "temperature": temperature, "logprobs": 5, "seed": 0}
    choice = client.complete({"model": model, **fields, **UNCHANGED_DISTRIBUTION})
    likeliest = sorted(choice["logprobs"]["top_logprobs"][0].values(), reverse=True)[:5]
    return float(likeliest[0] - likeliest[-1])


def _unload(client: VLLMClient, name: str) -> None:
    """Unload an adapter; a failure is only logged, since it must not hide the error that ended the rollouts."""
    try:
        client.unload(name)
    except VLLMServerError as error:
        _log.warning("the adapter %s could not be unloaded: %s", name, error)
