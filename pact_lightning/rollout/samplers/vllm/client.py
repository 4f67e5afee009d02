"""Client of a vLLM server: the sampler's few requests, repeated for a while, with one-sentence errors."""

import json
import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from pact_lightning.rollout.samplers.base import SamplerUnavailableError
from pact_lightning.rollout.samplers.vllm.turns import AdapterVersion
from pact_lightning.utils.endpoint import api_key, can_be_repeated, status_problem

_RETRY_COUNT = "x-stainless-retry-count"
"""Header in which OpenAI's client counts the repetitions of a request."""

_log = logging.getLogger(__name__)


class VLLMServerError(SamplerUnavailableError):
    """Error of a server that cannot be reached, refuses a request, or gives an unreadable answer."""


class VLLMClient:
    """Open connection to a server, for use with ``with``; several threads may share it.

    Args:
        base_url: Address of the server, version included.
        api_key_env: Environment variable that holds the key; empty for none.
        retries: Most repetitions of a request after a 408, 409, 429, 5xx, a timeout or a broken connection, each after
            a growing pause or the one that the server asks for.
        timeout_s: Seconds that one try may take.
    """

    def __init__(self, base_url: str, api_key_env: str, retries: int, timeout_s: float) -> None:
        # Imported only here, since the openai package is optional.
        from openai import DefaultHttpxClient, OpenAI

        self._name = f"the vLLM server {base_url}"
        self._api_key_env = api_key_env
        self._retries = retries
        self._timeout_s = timeout_s
        self._repeating = False
        hooks: Any = {"request": [self._notice_request], "response": [self._notice_response]}
        self._client = OpenAI(
            api_key=api_key(api_key_env),
            base_url=base_url,
            max_retries=retries,
            timeout=timeout_s,
            http_client=DefaultHttpxClient(event_hooks=hooks),
        )

    def __enter__(self) -> "VLLMClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def models(self) -> list[str]:
        """Return the names of the served model and of all adapters.

        Raises:
            VLLMServerError: The request failed.
        """
        answer = self._json(self._ask("/models", None))
        try:
            return [str(model["id"]) for model in answer["data"]]
        except (TypeError, KeyError) as error:
            raise VLLMServerError(f"{self._name} returned no list of models; is it a vLLM server?") from error

    def check_adapters_can_be_loaded(self) -> None:
        """Check that the server loads adapters, by a request that names none.

        A server that loads adapters answers that the request is bad, any other that the path is unknown.

        Raises:
            VLLMServerError: The server loads no adapters, or the request failed.
        """
        try:
            self._ask("/load_lora_adapter", {})
        except _RefusedError as error:
            if error.status == 404:
                raise VLLMServerError(
                    f"{self._name} cannot load adapters; start it with --enable-lora and with "
                    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment"
                ) from error
            if error.status not in (400, 422):
                raise

    def load(self, version: AdapterVersion) -> None:
        """Load an adapter.

        Raises:
            VLLMServerError: The server cannot load it.
        """
        body = {"lora_name": version.name, "lora_path": str(version.folder)}
        try:
            self._ask("/load_lora_adapter", body)
        except _RefusedError as error:
            # An earlier try whose answer was lost may have loaded it; nobody else has this name.
            if error.status != 400 or version.name not in self.models():
                raise VLLMServerError(
                    f"{error}; the server must see the folder {version.folder} under this path, and its "
                    "--max-lora-rank must be at least model.policy.lora_r"
                ) from error

    def unload(self, name: str) -> None:
        """Unload an adapter, if the server has it.

        Raises:
            VLLMServerError: The request failed.
        """
        try:
            self._ask("/unload_lora_adapter", {"lora_name": name})
        except _RefusedError as error:
            if error.status != 404:
                raise

    def complete(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Complete token ids.

        Args:
            body: Request to ``/v1/completions``; ``return_token_ids`` is added.

        Returns:
            The one choice, with ``token_ids`` and as many ``logprobs.token_logprobs``.

        Raises:
            VLLMServerError: The request failed, or token ids or log-probabilities are missing.
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
        """Post a body, or get a path without one; OpenAI's client repeats requests by itself."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        tries = f"{self._retries + 1} tries"
        try:
            if body is None:
                return self._client.get(path, cast_to=str)
            return self._client.post(path, cast_to=str, body=body)
        except APITimeoutError as error:
            seconds = f"{self._timeout_s:g} seconds"
            raise VLLMServerError(f"{self._name} did not answer within {seconds}, in {tries}") from error
        except APIConnectionError as error:
            raise VLLMServerError(
                f"{self._name} cannot be reached, in {tries}: {error.__cause__ or error}; is base_url right, and is "
                "the server up?"
            ) from error
        except APIStatusError as error:
            status, said = error.status_code, " ".join(str(error.message).split())[:500]
            problem = status_problem(self._name, status, said, api_key_env=self._api_key_env, retries=self._retries)
            if status in (401, 403) or can_be_repeated(status):
                raise VLLMServerError(problem) from error
            raise _RefusedError(problem, status) from error

    def _notice_request(self, request: Any) -> None:
        """Warn once per outage that requests are repeated, since the pauses can take half a minute."""
        if _is_repeated(request) and not self._repeating:
            self._repeating = True
            _log.warning(
                "%s failed, or did not answer; retrying up to %d times, with growing pauses",
                self._name,
                self._retries,
            )

    def _notice_response(self, response: Any) -> None:
        # An answer to a request that was not repeated does not tell that the outage is over.
        if self._repeating and _is_repeated(response.request) and response.status_code < 400:
            self._repeating = False
            _log.warning("%s answers again", self._name)

    def _json(self, content: str) -> Any:
        try:
            return json.loads(content)
        except ValueError as error:
            raise VLLMServerError(f"{self._name} did not answer with JSON; is it a vLLM server?") from error


def _is_repeated(request: Any) -> bool:
    return bool(request.headers.get(_RETRY_COUNT, "0") != "0")


class _RefusedError(VLLMServerError):
    """Error of a request that the server will never accept."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
