"""An LLM that cuts reasoning into typed chunks where the rules find it hard; absent unless it is asked for."""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

from pact_lightning.teacher.annotation import PROMPT_VERSION, annotation_messages, correction_messages
from pact_lightning.teacher.endpoint import Endpoint, EndpointConfig, RequestFailedError
from pact_lightning.traces.hard_turns import TurnContext
from pact_lightning.traces.segmentation import segment_reasoning
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trace import Chunk, ExpertTurn
from pact_lightning.utils.json_lines import AppendLog

Turn = tuple[str, Sequence[ToolCall], str]
"""What is annotated: the reasoning, the turn's calls, and a context such as the question."""


@dataclass(frozen=True)
class AnnotatorConfig:
    """Which annotator, and what it may cost.

    Attributes:
        endpoint: The model that annotates.
        cache: A file that keeps every answer, ``.jsonl``, so that nothing is paid twice.
        attempts: How often an answer is asked for; one that cannot be used goes back with what is wrong with it.
    """

    endpoint: EndpointConfig
    cache: str = "annotations.jsonl"
    attempts: int = 3

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: No attempt is allowed.
        """
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}")


@dataclass(slots=True)
class AnnotationStats:
    """What came of the turns.

    Attributes:
        annotated: Turns that the model's answer was used for.
        from_cache: Those among them whose answer was known already.
        asked_again: Answers that could not be used and were asked for again.
        unusable: Turns for which no answer could be used; the rules cut them.
        unanswered: Turns that the endpoint did not answer; the rules cut them, and the next run asks again.
        quality_flags: How often each flag was given.
    """

    annotated: int = 0
    from_cache: int = 0
    asked_again: int = 0
    unusable: int = 0
    unanswered: int = 0
    quality_flags: dict[str, int] = field(default_factory=dict)


class LLMAnnotator:
    """Cuts reasoning by asking a model, and remembers its answers.

    Chunks are slices of the original reasoning and cover it once and in order, whatever the model answers; a literal
    call is never in a safe one (:func:`~pact_lightning.teacher.annotation.annotated_chunks`). ``annotate`` and
    ``segment`` open the endpoint themselves; around the batch forms, use ``async with``.

    Args:
        config: Which model, and where its answers are kept.

    Attributes:
        stats: What came of the turns so far.
        endpoint: The model's endpoint, with what its requests took.

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
        """All that decides what the model is asked; no key, no address, no price."""
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
        """Cuts one turn's reasoning: an :class:`~pact_lightning.traces.hard_turns.Annotator`."""
        return self.annotate_text(turn.reasoning, turn.calls, str(context.prompt.messages[-1]["content"]))

    def annotate_text(self, reasoning: str, calls: Sequence[ToolCall], context: str = "") -> tuple[Chunk, ...] | None:
        """Cuts a reasoning; see :meth:`annotate_all`."""
        return self._at_once([(reasoning, calls, context)])[0]

    def segment(self, reasoning: str, calls: Sequence[ToolCall], context: str = "") -> tuple[Chunk, ...]:
        """Cuts a reasoning, by rule where the model's answer is of no use."""
        chunks = self.annotate_text(reasoning, calls, context)
        return segment_reasoning(reasoning, calls) if chunks is None else chunks

    async def annotate_all(self, turns: Sequence[Turn]) -> list[tuple[Chunk, ...] | None]:
        """Cuts many turns, ``endpoint.concurrency`` at a time.

        Args:
            turns: Reasoning, calls and context of each.

        Returns:
            The chunks of each turn, or ``None`` where no answer could be used, which is counted.

        Raises:
            EndpointError: The endpoint is of no use.
        """
        return list(await asyncio.gather(*(self._annotated(*turn) for turn in turns)))

    async def segment_all(self, turns: Sequence[Turn]) -> list[tuple[Chunk, ...]]:
        """Cuts many turns, by rule where the model's answer is of no use; raises as :meth:`annotate_all`."""
        annotated = await self.annotate_all(turns)
        return [
            segment_reasoning(reasoning, calls) if chunks is None else chunks
            for (reasoning, calls, _), chunks in zip(turns, annotated, strict=True)
        ]

    def close(self) -> None:
        """Closes the cache."""
        self._cache.close()

    def _at_once(self, turns: Sequence[Turn]) -> list[tuple[Chunk, ...] | None]:
        async def run() -> list[tuple[Chunk, ...] | None]:
            async with self:
                return await self.annotate_all(turns)

        return asyncio.run(run())

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
        """Chunks and flags of a remembered answer; ``None`` without one, or for one that was changed by hand."""
        from pact_lightning.teacher.annotation import AnnotationError, annotated_chunks, read_annotation

        if answer is None:
            return None
        try:
            read = read_annotation(answer)
            return annotated_chunks(read, reasoning, calls), read.quality_flags
        except AnnotationError:
            return None

    async def _ask(self, reasoning: str, calls: Sequence[ToolCall], context: str) -> str | None:
        """Asks until an answer can be used; ``None`` when none could."""
        from pact_lightning.teacher import annotation as answers

        texts = [reasoning[span.start : span.end] for span in answers.paragraphs(reasoning)]
        messages = annotation_messages(texts, calls, context)
        for number in range(self.config.attempts):
            reply = await self.endpoint.complete(messages)
            try:
                answers.annotated_chunks(answers.read_annotation(reply.text), reasoning, calls)
            except answers.AnnotationError as error:
                self.stats.asked_again += number + 1 < self.config.attempts
                messages = [*messages, *correction_messages(reply.text, str(error))]
            else:
                return reply.text
        return None

    def _key(self, reasoning: str, calls: Sequence[ToolCall], context: str) -> str:
        parts = [self.config.endpoint.model, PROMPT_VERSION, reasoning, [dict(call) for call in calls], context]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
