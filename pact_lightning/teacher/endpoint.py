"""A chat endpoint's reply, read strictly: servers differ in what they leave out.

A chat endpoint that speaks OpenAI's protocol: a teacher's, or an annotator's; hosted, or a server of one's own.
"""

import asyncio
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pact_lightning.utils.endpoint import api_key, can_be_repeated, check_base_url, status_problem

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_REASONING_FIELDS = ("reasoning_content", "reasoning")
"""Where servers put the thinking that they have parsed out of the text."""


class UnreadableReplyError(Exception):
    """A reply that is no chat completion."""


@dataclass(frozen=True, slots=True)
class NativeCall:
    """A tool call as the protocol gives it.

    Attributes:
        id: Its id; may be empty.
        name: The tool's name.
        arguments: The arguments as JSON text, unread.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Reply:
    """One assistant message.

    Attributes:
        text: Its text.
        reasoning: Its thinking, where the server gives it apart from the text.
        reasoning_field: The field that the thinking stood in; empty where there was none.
        calls: Its native tool calls.
        cut: It ended at the token limit.
        prompt_tokens: Tokens read; 0 where the server does not say.
        completion_tokens: Tokens written; 0 where the server does not say.
        counted: Whether the server gave the counts.
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
    """Reads the body of a chat completion.

    Args:
        body: The JSON value.

    Returns:
        The reply. Half characters (unpaired surrogates), which have no UTF-8, become question marks.

    Raises:
        UnreadableReplyError: It has no message, or one of another shape; the error says what is wrong.
    """
    choices = _get(body, "choices")
    if not isinstance(choices, list) or not choices:
        raise UnreadableReplyError(f"it has no choices, but {str(body)[:120]!r}")
    message = _get(choices[0], "message")
    if not isinstance(message, Mapping):
        raise UnreadableReplyError("its first choice has no message")
    field = next((name for name in _REASONING_FIELDS if isinstance(message.get(name), str) and message[name]), "")
    usage = _get(body, "usage")
    counts = [_get(usage, "prompt_tokens"), _get(usage, "completion_tokens")]
    counted = all(type(count) is int and count >= 0 for count in counts)
    return Reply(
        text=_text(message.get("content")),
        reasoning=_text(message[field]) if field else "",
        reasoning_field=field,
        calls=_calls(message.get("tool_calls")),
        cut=_get(choices[0], "finish_reason") == "length",
        prompt_tokens=counts[0] if counted else 0,
        completion_tokens=counts[1] if counted else 0,
        counted=counted,
    )


def _calls(value: Any) -> tuple[NativeCall, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise UnreadableReplyError("its tool_calls are no list")
    calls = []
    for entry in value:
        function = _get(entry, "function")
        name, arguments = _get(function, "name"), _get(function, "arguments")
        if not isinstance(name, str) or not isinstance(arguments, str | None):
            raise UnreadableReplyError("a tool call has no function with a name and arguments as text")
        identity = _get(entry, "id")
        calls.append(NativeCall(identity if isinstance(identity, str) else "", _text(name), _text(arguments)))
    return tuple(calls)


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None


def _text(value: Any) -> str:
    """A text; the text parts of a list of parts; nothing where there is none."""
    if value is None:
        return ""
    if isinstance(value, list):
        parts = [_get(part, "text") for part in value if _get(part, "type") in ("text", "output_text")]
        value = "".join(part for part in parts if isinstance(part, str))
    if not isinstance(value, str):
        raise UnreadableReplyError(f"it has a {type(value).__name__} where a text should be")
    return value.encode(errors="replace").decode()


class EndpointError(OSError):
    """The endpoint is of no use: it cannot be reached, refuses the key, or does not have the model."""


class RequestFailedError(EndpointError):
    """One request has failed for good; others may still succeed.

    Attributes:
        refused: The endpoint will not take the request, whenever it is asked (its dialogue is too long, say); otherwise
            it was overloaded or silent for longer than the retries lasted.
    """

    def __init__(self, message: str, *, refused: bool) -> None:
        super().__init__(message)
        self.refused = refused


@dataclass(frozen=True)
class EndpointConfig:
    """Which endpoint, and how it is asked.

    Attributes:
        model: The model's name there.
        base_url: Where it is, version included, for example ``http://127.0.0.1:8000/v1``. There is no default:
            prompts and tool responses are sent there.
        api_key_env: The environment variable that holds the key; empty for a server that needs none. The key itself
            never stands in a recipe, a log or a report.
        concurrency: Requests under way at the same time.
        retries: How often a request is repeated after a 429, a 5xx, a timeout, a broken connection or an unreadable
            reply, after a growing pause or the one that the endpoint asks for.
        timeout_s: Seconds that one try may take.
        temperature: Sampling temperature; ``None`` for the endpoint's default.
        max_tokens: Most tokens of one reply; ``None`` for the endpoint's default. A reply that reaches it is cut.
        price_in: Price of a million prompt tokens, in any currency.
        price_out: Price of a million completion tokens, in the same.
        extra_body: Further fields of each request, for example ``{"max_completion_tokens": 4096}``.
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
        """Checks the values.

        Raises:
            ValueError: One of them makes no sense.
        """
        check_base_url(self.base_url)
        if not self.model:
            raise ValueError("model must name a model of the endpoint")
        if self.concurrency < 1 or self.retries < 0 or self.timeout_s <= 0 or min(self.price_in, self.price_out) < 0:
            raise ValueError("an endpoint needs concurrency >= 1, retries >= 0, timeout_s > 0 and prices >= 0")


@dataclass(slots=True)
class Usage:
    """What requests took.

    Attributes:
        requests: Requests, those that failed included.
        retries: Repetitions on the way to an answer, or to giving up.
        prompt_tokens: Tokens read, as the endpoint counts them.
        completion_tokens: Tokens written, reasoning included.
        uncounted: Replies for which the endpoint gave no token counts.
    """

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0

    def add(self, other: "Usage") -> None:
        """Adds what other requests took."""
        self.requests += other.requests
        self.retries += other.retries
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.uncounted += other.uncounted

    def cost(self, config: EndpointConfig) -> float:
        """The price of all tokens, in the currency of the config's prices; discounts for cached tokens left aside."""
        return (self.prompt_tokens * config.price_in + self.completion_tokens * config.price_out) / 1e6


class Endpoint:
    """An open connection to an endpoint; use it with ``async with``.

    Args:
        config: Which endpoint.

    Attributes:
        usage: What all requests took so far.

    Raises:
        ImportError: The ``openai`` package is missing.
        ValueError: The environment variable of the key is not set, or what it holds cannot be a key.
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
        """Asks for the next assistant message.

        Args:
            messages: The dialogue, in OpenAI format.
            tools: Schemas of the tools that may be called natively.

        Returns:
            The reply.

        Raises:
            RequestFailedError: The request was refused, or not answered for as long as the retries lasted.
            EndpointError: The endpoint is of no use.
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
                    # The client says how often it tried only where it succeeds; it does not repeat what is refused.
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
            raise EndpointError(f"{message}; is base_url right, and is the server up?") from error
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
        """An error's first words, without the key that some servers repeat."""
        text = " ".join(str(error).split()) or type(error).__name__
        return (text.replace(self._key, "***") if self.config.api_key_env else text)[:300]
