"""Annotator: a language model that segments reasoning, with a cache of its answers.

It asks the endpoint and keeps the answers; the prompt and the reading of an answer are in ``annotation.py``. It is
optional, and meant for the hard turns of ``traces/hard_turns.py``.
"""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

from pact_lightning.teacher.annotation import (
    PROMPT_VERSION,
    AnnotationError,
    annotated_chunks,
    annotation_messages,
    correction_messages,
    read_annotation,
)
from pact_lightning.teacher.endpoint import Endpoint, EndpointConfig, RequestFailedError
from pact_lightning.traces.hard_turns import TurnContext
from pact_lightning.traces.segmentation import segment_reasoning
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trace import Chunk, ExpertTurn
from pact_lightning.utils.json_lines import AppendLog

Turn = tuple[str, Sequence[ToolCall], str]
"""Turn to annotate: its reasoning, its calls, and a context such as the question."""


@dataclass(frozen=True)
class AnnotatorConfig:
    """Settings of an annotator.

    Attributes:
        endpoint: The endpoint of its model.
        cache: A ``.jsonl`` file that keeps every answer, so nothing is paid twice.
        attempts: Most attempts per turn; an unusable answer goes back with its mistake.

    Raises:
        ValueError: No attempt is allowed.
    """

    endpoint: EndpointConfig
    cache: str = "annotations.jsonl"
    attempts: int = 3

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}")


@dataclass(slots=True)
class AnnotationStats:
    """Counts of an annotator.

    Attributes:
        annotated: Turns with a usable answer.
        from_cache: Those of them whose answer was cached.
        asked_again: Unusable answers that were asked for again.
        unusable: Turns without a usable answer, which the rules segment.
        unanswered: Turns without any answer, which the rules segment; the next run asks again.
        quality_flags: Number of turns with each flag.
    """

    annotated: int = 0
    from_cache: int = 0
    asked_again: int = 0
    unusable: int = 0
    unanswered: int = 0
    quality_flags: dict[str, int] = field(default_factory=dict)


class LLMAnnotator:
    """Segmenter of reasoning by a language model, with a cache.

    Chunks are slices of the original reasoning and cover it once and in order, whatever the model answers; a safe one
    never holds a literal call (:func:`~pact_lightning.teacher.annotation.annotated_chunks`). ``annotate`` and
    ``segment`` open the endpoint themselves; the batch forms need ``async with``.

    Args:
        config: The settings.

    Attributes:
        stats: Counts of the turns so far.
        endpoint: The model's endpoint, with the usage of its requests.

    Raises:
        ImportError: The ``openai`` package is missing.
        ValueError: The endpoint's key is not set.
    """

    def __init__(self, config: AnnotatorConfig) -> None:
        self.config = config
        self.endpoint = Endpoint(config.endpoint)
        self.stats = AnnotationStats()
        self._locks: dict[str, asyncio.Lock] = {}
        self._cache = AppendLog(config.cache)
        self._answers: dict[str, str | None] = {
            record["key"]: record["answer"]
            for record in self._cache.records
            if isinstance(record, dict) and {"key", "answer"} <= record.keys()
        }

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that decide the prompts: no key, no address, no price."""
        endpoint = asdict(self.config.endpoint)
        named = {name: endpoint[name] for name in ("model", "temperature", "max_tokens", "extra_body")}
        return {**named, "attempts": self.config.attempts, "prompt_version": PROMPT_VERSION}

    async def __aenter__(self) -> "LLMAnnotator":
        await self.endpoint.__aenter__()
        self._locks = {}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.endpoint.__aexit__(kind, error, trace)

    def annotate(self, turn: ExpertTurn, context: TurnContext) -> tuple[Chunk, ...] | None:
        """Segment one turn's reasoning, as an :class:`~pact_lightning.traces.hard_turns.Annotator`."""
        return self.annotate_text(turn.reasoning, turn.calls, str(context.prompt.messages[-1]["content"]))

    def annotate_text(self, reasoning: str, calls: Sequence[ToolCall], context: str = "") -> tuple[Chunk, ...] | None:
        """Segment a reasoning; see :meth:`annotate_all`."""

        async def run() -> tuple[Chunk, ...] | None:
            async with self:
                return await self._annotated(reasoning, calls, context)

        return asyncio.run(run())

    def segment(self, reasoning: str, calls: Sequence[ToolCall], context: str = "") -> tuple[Chunk, ...]:
        """Segment a reasoning, by rule if the model gives no usable answer."""
        chunks = self.annotate_text(reasoning, calls, context)
        return segment_reasoning(reasoning, calls) if chunks is None else chunks

    async def annotate_all(self, turns: Sequence[Turn]) -> list[tuple[Chunk, ...] | None]:
        """Segment many turns, ``endpoint.concurrency`` at a time.

        Args:
            turns: Reasoning, calls and context of each.

        Returns:
            The chunks of each turn; ``None`` without a usable answer, which is counted.

        Raises:
            EndpointError: The endpoint cannot be used.
        """
        return list(await asyncio.gather(*(self._annotated(*turn) for turn in turns)))

    async def segment_all(self, turns: Sequence[Turn]) -> list[tuple[Chunk, ...]]:
        """Segment many turns, by rule without a usable answer; see :meth:`annotate_all`."""
        annotated = await self.annotate_all(turns)
        return [
            segment_reasoning(reasoning, calls) if chunks is None else chunks
            for (reasoning, calls, _), chunks in zip(turns, annotated, strict=True)
        ]

    def close(self) -> None:
        """Close the cache."""
        self._cache.close()

    async def _annotated(self, reasoning: str, calls: Sequence[ToolCall], context: str) -> tuple[Chunk, ...] | None:
        if not reasoning:
            return ()
        key = self._key(reasoning, calls, context)
        async with self._locks.setdefault(key, asyncio.Lock()):  # the same turn twice in one batch is asked once
            known = key in self._answers
            if not known:
                try:
                    answer = await self._ask(reasoning, calls, context)
                except RequestFailedError:
                    self.stats.unanswered += 1
                    return None
                self._answers[key] = answer
                self._cache.append({"key": key, "model": self.config.endpoint.model, "answer": answer})
        usable = self._read(self._answers[key], reasoning, calls)
        if usable is None:
            self.stats.unusable += 1
            return None
        chunks, flags = usable
        self.stats.annotated += 1
        self.stats.from_cache += known
        for flag in flags:
            self.stats.quality_flags[flag] = self.stats.quality_flags.get(flag, 0) + 1
        return chunks

    @staticmethod
    def _read(
        answer: str | None, reasoning: str, calls: Sequence[ToolCall]
    ) -> tuple[tuple[Chunk, ...], list[str]] | None:
        """Return the chunks and flags of a cached answer; ``None`` without one, or if it was changed by hand."""
        if answer is None:
            return None
        try:
            read = read_annotation(answer)
            return annotated_chunks(read, reasoning, calls), read.quality_flags
        except AnnotationError:
            return None

    async def _ask(self, reasoning: str, calls: Sequence[ToolCall], context: str) -> str | None:
        """Ask until an answer is usable; return ``None`` if none is."""
        messages = annotation_messages(reasoning, calls, context)
        for number in range(self.config.attempts):
            reply = await self.endpoint.complete(messages)
            try:
                annotated_chunks(read_annotation(reply.text), reasoning, calls)
            except AnnotationError as error:
                self.stats.asked_again += number + 1 < self.config.attempts
                messages = [*messages, *correction_messages(reply.text, str(error))]
            else:
                return reply.text
        return None

    def _key(self, reasoning: str, calls: Sequence[ToolCall], context: str) -> str:
        parts = [self.config.endpoint.model, PROMPT_VERSION, reasoning, [dict(call) for call in calls], context]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
