"""The few requests that the sampler makes to a vLLM server, each repeated a while, then told in one sentence."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from pact_lightning.rollout.samplers.base import SamplerUnavailableError
from pact_lightning.rollout.samplers.vllm.turns import AdapterVersion
from pact_lightning.utils.endpoint import api_key, can_be_repeated, status_problem

_RETRY_COUNT = "x-stainless-retry-count"
"""The header in which the client counts the repetitions of a request."""


_log = logging.getLogger(__name__)


class VLLMServerError(SamplerUnavailableError):
    """The server is of no use: it cannot be reached, refuses a request, or answers what cannot be read."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where a server is, and how patiently it is asked.

    Attributes:
        base_url: Its address, version included.
        api_key_env: The environment variable that holds its key; empty for none.
        retries: How often a request is repeated after a 408, 409, 429, 5xx, a timeout or a broken connection, after a
            growing pause or the one that the server asks for.
        timeout_s: Seconds that one try may take.
    """

    base_url: str
    api_key_env: str
    retries: int
    timeout_s: float


class VLLMClient:
    """An open connection, used with ``with``; several threads may use it at the same time.

    Args:
        config: Which server.
    """

    def __init__(self, config: ServerConfig) -> None:
        # Imported only here: the package does without it where nothing is sampled by a server.
        from openai import DefaultHttpxClient, OpenAI

        self._config = config
        self._repeating = False
        hooks: Any = {"request": [self._notice_request], "response": [self._notice_response]}
        self._client = OpenAI(
            api_key=api_key(config.api_key_env),
            base_url=config.base_url,
            max_retries=config.retries,
            timeout=config.timeout_s,
            http_client=DefaultHttpxClient(event_hooks=hooks),
        )

    def __enter__(self) -> "VLLMClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def models(self) -> list[str]:
        """Names of the served model and of all adapters.

        Raises:
            VLLMServerError: The server is of no use.
        """
        answer = self._json(self._ask("/models", None))
        try:
            return [str(model["id"]) for model in answer["data"]]
        except (TypeError, KeyError) as error:
            raise VLLMServerError(f"{self._name} gives no list of models; is it a vLLM server?") from error

    def check_adapters_can_be_loaded(self) -> None:
        """Asks for nothing to be loaded: a bad request to a server that loads adapters, an unknown path to another.

        Raises:
            VLLMServerError: It loads none, or is of no use.
        """
        try:
            self._ask("/load_lora_adapter", {})
        except _RefusedError as error:
            if error.status == 404:
                raise VLLMServerError(
                    f"{self._name} loads no adapters; start it with --enable-lora and with "
                    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment"
                ) from error
            if error.status not in (400, 422):
                raise

    def load(self, version: AdapterVersion) -> None:
        """Loads an adapter.

        Raises:
            VLLMServerError: The server cannot.
        """
        body = {"lora_name": version.name, "lora_path": str(version.folder)}
        try:
            self._ask("/load_lora_adapter", body)
        except _RefusedError as error:
            # A try whose answer was lost has loaded it; nobody else has this name.
            if error.status != 400 or version.name not in self.models():
                raise VLLMServerError(
                    f"{error}; the server must see the folder {version.folder} under this path, and its "
                    "--max-lora-rank must be at least model.policy.lora_r"
                ) from error

    def unload(self, name: str) -> None:
        """Unloads an adapter; one that is not there is none to unload.

        Raises:
            VLLMServerError: The server is of no use.
        """
        try:
            self._ask("/unload_lora_adapter", {"lora_name": name})
        except _RefusedError as error:
            if error.status != 404:
                raise

    def complete(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Completes token ids.

        Args:
            body: The request to ``/v1/completions``; token ids are asked for on top.

        Returns:
            The one choice, with ``token_ids`` and ``logprobs.token_logprobs``, one for one.

        Raises:
            VLLMServerError: The server is of no use.
        """
        answer = self._json(self._ask("/completions", {**body, "return_token_ids": True}))
        try:
            (choice,) = answer["choices"]
            ids, logps = choice["token_ids"], choice["logprobs"]["token_logprobs"]
            if len(ids) != len(logps) or any(logp is None for logp in logps):
                raise ValueError("not every token has a log-probability")
        except (TypeError, KeyError, ValueError) as error:
            raise VLLMServerError(
                f"{self._name} gives no token ids with their log-probabilities ({type(error).__name__}: {error}); "
                "it must be a vLLM server that knows return_token_ids"
            ) from error
        found: Mapping[str, Any] = choice
        return found

    def _ask(self, path: str, body: Mapping[str, Any] | None) -> str:
        """Posts a body, or gets a path; the client repeats what may be repeated."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        tries = f"{self._config.retries + 1} tries"
        try:
            if body is None:
                return self._client.get(path, cast_to=str)
            return self._client.post(path, cast_to=str, body=body)
        except APITimeoutError as error:
            seconds = f"{self._config.timeout_s:g} seconds"
            raise VLLMServerError(f"{self._name} did not answer within {seconds}, in {tries}") from error
        except APIConnectionError as error:
            raise VLLMServerError(
                f"{self._name} cannot be reached, in {tries}: {error.__cause__ or error}; is base_url right, and is "
                "the server up?"
            ) from error
        except APIStatusError as error:
            status, said = error.status_code, " ".join(str(error.message).split())[:500]
            key, retries = self._config.api_key_env, self._config.retries
            problem = status_problem(self._name, status, said, api_key_env=key, retries=retries)
            if status in (401, 403) or can_be_repeated(status):
                raise VLLMServerError(problem) from error
            raise _RefusedError(problem, status) from error

    def _notice_request(self, request: Any) -> None:
        """Says once per outage that requests are repeated: the pauses between tries can take half a minute."""
        if _is_repeated(request) and not self._repeating:
            self._repeating = True
            _log.warning(
                "%s failed, or did not answer; requests are repeated up to %d times, after growing pauses",
                self._name,
                self._config.retries,
            )

    def _notice_response(self, response: Any) -> None:
        # Others of the same time may never have failed.
        if self._repeating and _is_repeated(response.request) and response.status_code < 400:
            self._repeating = False
            _log.warning("%s answers again", self._name)

    def _json(self, content: str) -> Any:
        try:
            return json.loads(content)
        except ValueError as error:
            raise VLLMServerError(f"{self._name} answers what is not JSON; is it a vLLM server?") from error

    @property
    def _name(self) -> str:
        return f"the vLLM server {self._config.base_url}"


def _is_repeated(request: Any) -> bool:
    return bool(request.headers.get(_RETRY_COUNT, "0") != "0")


class _RefusedError(VLLMServerError):
    """The server will not take the request, whenever it is asked."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
