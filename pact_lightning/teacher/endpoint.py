"""Client of an OpenAI-compatible chat endpoint, for teachers and annotators, and its replies.

The endpoint may be a hosted model or a server of one's own. :class:`Endpoint` limits the requests under way, repeats
failed ones and counts tokens; :func:`read_reply` reads what comes back.
"""

import asyncio
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pact_lightning.utils.endpoint import api_key, can_be_repeated, check_base_url, status_problem
from pact_lightning.utils.errors import shortened

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_REASONING_FIELDS = ("reasoning_content", "reasoning")
"""Fields in which servers return the thinking that they have parsed out of the text."""


class UnreadableReplyError(Exception):
    """Reply that is no chat completion."""


@dataclass(frozen=True, slots=True)
class NativeCall:
    """Tool call in the protocol's form.

    Attributes:
        id: Its id; may be empty.
        name: The tool's name.
        arguments: The arguments as JSON text, not yet parsed.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Reply:
    """One assistant message.

    Attributes:
        text: Its text.
        reasoning: Its thinking, if the server returns it apart from the text.
        reasoning_field: The field of the thinking; empty without one.
        calls: Its native tool calls.
        cut: True if it ended at the token limit.
        prompt_tokens: Tokens read; 0 if the server gives no counts.
        completion_tokens: Tokens written; 0 if the server gives no counts.
        counted: True if the server gives the counts.
    """

    text: str = ""
    reasoning: str = ""
    reasoning_field: str = ""
    calls: tuple[NativeCall, ...] = ()
    cut: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    counted: bool = False


def read_reply(body: Any) -> Reply:
    """Read the body of a chat completion; servers differ in what they leave out and add.

    Args:
        body: The JSON value.

    Returns:
        The reply. Half characters (unpaired surrogates), which have no UTF-8, become question marks.

    Raises:
        UnreadableReplyError: The body has no message, or one of another shape.
    """
    # OpenAI's own class of a completion refuses what servers in use send, such as a finish reason of their own.
    try:
        choice = body["choices"][0]
        message = choice["message"]
        field = next((name for name in _REASONING_FIELDS if isinstance(message.get(name), str) and message[name]), "")
        usage = body["usage"] if isinstance(body.get("usage"), dict) else {}
        counts: list[Any] = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
        counted = all(type(count) is int and count >= 0 for count in counts)
        calls = message.get("tool_calls")
        if not isinstance(calls, list | None):
            raise TypeError
        return Reply(
            text=_text(message.get("content")),
            reasoning=_text(message[field]) if field else "",
            reasoning_field=field,
            calls=tuple(map(_call, calls or ())),
            cut=choice.get("finish_reason") == "length",
            prompt_tokens=counts[0] if counted else 0,
            completion_tokens=counts[1] if counted else 0,
            counted=counted,
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UnreadableReplyError(f"it is no chat completion, but {shortened(body, 120)}") from error


def _call(value: Any) -> NativeCall:
    name, arguments = value["function"]["name"], value["function"].get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, str | None):
        raise TypeError
    return NativeCall(value["id"] if isinstance(value.get("id"), str) else "", _text(name), _text(arguments))


def _text(value: Any) -> str:
    """Return a text, the joined text parts of a list, or an empty text for ``None``."""
    if isinstance(value, list):
        parts = [part for part in value if isinstance(part, dict) and part.get("type") in ("text", "output_text")]
        value = "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    if not isinstance(value, str | None):
        raise TypeError
    return (value or "").encode(errors="replace").decode()


class EndpointError(OSError):
    """Useless endpoint: it cannot be reached, refuses the key, or does not have the model."""


class RequestFailedError(EndpointError):
    """Final failure of one request; others may still succeed.

    Attributes:
        refused: True if the endpoint will never take the request (its dialogue is too long, say). False if it was
            overloaded or silent for longer than the retries lasted.
    """

    def __init__(self, message: str, *, refused: bool) -> None:
        super().__init__(message)
        self.refused = refused


@dataclass(frozen=True)
class EndpointConfig:
    """Address and settings of an endpoint.

    Attributes:
        model: The model's name there.
        base_url: The address, version included, for example ``http://127.0.0.1:8000/v1``. There is no default:
            prompts and tool responses are sent there.
        api_key_env: The environment variable that holds the key; empty for a server that needs none. The key itself
            never stands in a recipe, a log or a report.
        concurrency: Number of requests at the same time.
        retries: Number of repetitions of a request after a 429, a 5xx, a timeout, a broken connection or an unreadable
            reply. The pauses grow, or are those that the endpoint asks for.
        timeout_s: Seconds that one try may take.
        temperature: Sampling temperature; ``None`` for the endpoint's default.
        max_tokens: Token limit of one reply, at which it is cut; ``None`` for the endpoint's default.
        price_in: Price of a million prompt tokens, in any currency.
        price_out: Price of a million completion tokens, in the same currency.
        extra_body: Further fields of each request, for example ``{"max_completion_tokens": 4096}``.

    Raises:
        ValueError: The address holds a key or is none, or a value is out of its range.
    """

    model: str
    base_url: str
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8
    retries: int = 5
    timeout_s: float = 300.0
    temperature: float | None = None
    max_tokens: int | None = None
    price_in: float = 0.0
    price_out: float = 0.0
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_base_url(self.base_url)
        if not self.model:
            raise ValueError("model must name a model of the endpoint")
        if self.concurrency < 1 or self.retries < 0 or self.timeout_s <= 0 or min(self.price_in, self.price_out) < 0:
            raise ValueError("an endpoint needs concurrency >= 1, retries >= 0, timeout_s > 0 and prices >= 0")


@dataclass(slots=True)
class Usage:
    """Requests, retries and tokens.

    Attributes:
        requests: Number of requests, failed ones included.
        retries: Number of repetitions on the way to an answer, or to giving up.
        prompt_tokens: Tokens read, by the endpoint's count.
        completion_tokens: Tokens written, reasoning included.
        uncounted: Number of replies without token counts.
    """

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0

    def add(self, other: "Usage") -> None:
        """Add the usage of other requests."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def cost(self, config: EndpointConfig) -> float:
        """Compute the price of all tokens by the config's prices; discounts for cached tokens are not known."""
        return (self.prompt_tokens * config.price_in + self.completion_tokens * config.price_out) / 1e6


class Endpoint:
    """Connection to an endpoint, opened by ``async with``.

    Args:
        config: Address and settings.

    Attributes:
        usage: The usage of all requests so far.

    Raises:
        ImportError: The ``openai`` package is missing.
        ValueError: The environment variable of the key is not set, or its value cannot be a key.
    """

    def __init__(self, config: EndpointConfig) -> None:
        if importlib.util.find_spec("openai") is None:
            raise ImportError("a teacher or annotator needs the openai package: pip install 'pact-lightning[teacher]'")
        self.config = config
        self.usage = Usage()
        self._answered = False
        self._key = api_key(config.api_key_env)
        self._client: AsyncOpenAI | None = None
        self._places = asyncio.Semaphore(config.concurrency)

    async def __aenter__(self) -> "Endpoint":
        from openai import AsyncOpenAI

        self._places = asyncio.Semaphore(self.config.concurrency)
        self._client = AsyncOpenAI(
            api_key=self._key,
            base_url=self.config.base_url,
            max_retries=self.config.retries,
            timeout=self.config.timeout_s,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def complete(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> Reply:
        """Request the next assistant message.

        Args:
            messages: The dialogue, in OpenAI format.
            tools: Schemas of the tools that may be called natively.

        Returns:
            The reply.

        Raises:
            RequestFailedError: The request was refused, or all retries failed.
            EndpointError: The endpoint cannot be used at all.
            RuntimeError: The endpoint was not opened.
        """
        if self._client is None:
            raise RuntimeError("open the endpoint first: async with Endpoint(config) as endpoint")
        options: dict[str, Any] = {"tools": [dict(tool) for tool in tools]} if tools else {}
        if self.config.temperature is not None:
            options["temperature"] = self.config.temperature
        if self.config.max_tokens is not None:
            options["max_tokens"] = self.config.max_tokens
        async with self._places:
            for attempt in range(self.config.retries + 1):
                try:
                    return await self._ask(self._client, messages, options)
                except UnreadableReplyError as error:
                    self.usage.retries += attempt < self.config.retries
                    problem = str(error)
                except RequestFailedError as error:
                    # The client reports its retries only on success; it does not repeat what is refused.
                    self.usage.add(Usage(1, 0 if error.refused else self.config.retries))
                    raise
                await asyncio.sleep(min(0.1 * 2**attempt, 8.0))
        self.usage.add(Usage(1))
        raise RequestFailedError(f"{self._name} gave no readable reply: {problem}", refused=False)

    async def _ask(
        self, client: "AsyncOpenAI", messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> Reply:
        from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError

        create: Any = client.chat.completions.with_raw_response.create  # its many overloads take no mappings
        try:
            response = await create(
                model=self.config.model,
                messages=[dict(message) for message in messages],
                extra_body=dict(self.config.extra_body) or None,
                **options,
            )
        except APITimeoutError as error:
            seconds = f"{self.config.timeout_s:g} seconds"
            raise RequestFailedError(f"{self._name} did not answer within {seconds}", refused=False) from error
        except APIConnectionError as error:
            message = f"{self._name} cannot be reached: {self._safe(error.__cause__ or error)}"
            if self._answered:
                raise RequestFailedError(message, refused=False) from error
            raise EndpointError(f"{message}; is base_url correct, and is the server running?") from error
        except APIStatusError as error:
            raise self._status_error(error.status_code, self._safe(error.message)) from error
        except APIError as error:
            raise UnreadableReplyError(self._safe(error)) from error
        self._answered = True
        self.usage.retries += int(response.retries_taken)
        try:
            reply = read_reply(json.loads(response.http_response.content))
        except (ValueError, RecursionError) as error:
            raise UnreadableReplyError(f"it is not JSON: {error}") from error
        self.usage.add(Usage(1, 0, reply.prompt_tokens, reply.completion_tokens, int(not reply.counted)))
        return reply

    def _status_error(self, status: int, said: str) -> EndpointError:
        if status == 404:
            return EndpointError(f"{self._name} has no such model or path ({status}): {said}")
        problem = status_problem(
            self._name, status, said, api_key_env=self.config.api_key_env, retries=self.config.retries
        )
        if status in (401, 403):
            return EndpointError(problem)
        return RequestFailedError(problem, refused=not can_be_repeated(status))

    @property
    def _name(self) -> str:
        return f"the endpoint {self.config.base_url} (model {self.config.model!r})"

    def _safe(self, error: object) -> str:
        """Return an error's first words, without the key, which some servers repeat."""
        text = " ".join(str(error).split()) or type(error).__name__
        return (text.replace(self._key, "***") if self.config.api_key_env else text)[:300]
