"""Contexts of the log-probabilities: the prompt ``x``, and the privileged context ``c^h = [x; h*]``."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pact_lightning.dialogue.renderer import Renderer
from pact_lightning.traces.levels import MAX_LEVEL, prefix_ends
from pact_lightning.traces.tokens import RenderedTrace, render_trace
from pact_lightning.types.prompt import Message, PromptView, UserTurn
from pact_lightning.types.task import Task
from pact_lightning.types.trace import Chunk, ExpertTrace, ExpertTurn

TraceTemplate = Literal["turns", "user_block", "system_block"]
TraceContext = Literal["full", "safe", "follow"]

_BLOCK_HEAD = "An expert solved this task as follows.\n<expert_trace>\n"
_BLOCK_TAIL = "\n</expert_trace>"


@dataclass(frozen=True, slots=True)
class PrivilegedContext:
    """The privileged context of one prompt.

    Attributes:
        prompt: Tokens of ``x``, ``[P]``.
        ids: Tokens of ``c^h``, ``[C]``.
        target: The trace as SFT scores it, after ``x``; its tokens are ``ids[P:]`` where ``shared``.
        shared: ``c^h`` is the prompt followed by the very tokens of ``target``.
        dropped_turns: Turns whose reasoning was dropped to make it fit.
    """

    prompt: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    target: RenderedTrace
    shared: bool
    dropped_turns: int = 0


class ContextBuilder:
    """Contexts of a policy's prompts.

    Args:
        renderer: The policy's renderer.
        template: Where the trace stands (METHOD 5.1): ``turns`` real chat turns after the prompt, ``user_block`` or
            ``system_block`` quoted in the last user or the system message.
        context: Share of its reasoning that is shown (METHOD 5.3): ``full`` all of it, ``safe`` the L4 prefixes,
            ``follow`` the prefixes of the active level.
        max_tokens: Tokens that context and longest rollout may take together; ``None`` for any number.
        with_answer: Whether the SFT target holds the final answer turn; no context does.

    Raises:
        ValueError: ``max_tokens`` is below 1.
    """

    def __init__(
        self,
        renderer: Renderer,
        template: TraceTemplate,
        context: TraceContext,
        max_tokens: int | None,
        *,
        with_answer: bool = False,
    ) -> None:
        self.renderer = renderer
        self.template = template
        self.context = context
        self.with_answer = with_answer
        self.max_tokens = math.inf if max_tokens is None else max_tokens
        if self.max_tokens < 1:
            raise ValueError(f"model.max_context_tokens counts tokens, not {max_tokens}; leave it out or raise it")

    def prompt(self, task: Task) -> npt.NDArray[np.int64]:
        """Return the tokens of ``x``, ``[P]``."""
        return np.array(self.renderer.prompt(task.prompt.messages, task.prompt.tools), dtype=np.int64)

    def privileged(
        self,
        task: Task,
        trace: ExpertTrace,
        level: int,
        longest_rollout: int,
        *,
        imitated: ExpertTrace | None = None,
        blank: bool = False,
    ) -> PrivilegedContext | None:
        """Build ``c^h``; drop reasoning, oldest turn first, while it is too long (METHOD 5.6).

        Args:
            task: The task.
            trace: Its expert trace; the final answer turn is never shown.
            level: The active level, for ``follow``.
            longest_rollout: Tokens of the longest rollout that has to fit behind the context.
            imitated: The trace of the SFT target, where it is another one.
            blank: Put a line feed in the place of every token that the context adds to the prompt.

        Returns:
            The context, or ``None`` where it does not fit even without reasoning.
        """
        prompt = self.prompt(task)
        for dropped, candidate in self._shortened(trace, level):
            ids = self._context_ids(task, prompt, candidate)
            target = self._target(task, len(prompt), imitated or trace, candidate)
            if blank:
                ids = self._blanked(prompt, ids)
            if len(ids) + longest_rollout <= self.max_tokens and target is not None:
                shared = np.array_equal(np.concatenate([prompt, target.ids]), ids)
                return PrivilegedContext(prompt, ids, target, bool(shared), dropped)
        return None

    def sampled_with(self, task: Task, level: int, longest_rollout: int) -> PromptView | None:
        """Word a task's prompt with its trace quoted, for rollouts that see it: off-spec.

        Args:
            task: The task, which has a trace.
            level: The active level, for ``follow``.
            longest_rollout: Tokens that a rollout may take.

        Returns:
            The prompt; ``None`` where it does not fit even without reasoning.
        """
        assert task.trace is not None
        for _, candidate in self._shortened(task.trace, level):
            messages = self._quoted(task, candidate)
            if len(self.renderer.prompt(messages, task.prompt.tools)) + longest_rollout <= self.max_tokens:
                return replace(task.prompt, messages=tuple(messages))
        return None

    def _shortened(self, trace: ExpertTrace, level: int) -> Iterator[tuple[int, ExpertTrace]]:
        """Yield what is shown of a trace, with ever more reasoning dropped and the number of turns that lost theirs."""
        shown = self._shown(trace, level)
        for cut in range(len(trace.turns) + 1):
            if cut and not shown.turns[cut - 1].chunks:
                continue
            turns = [replace(turn, chunks=()) for turn in shown.turns[:cut]]
            dropped = sum(bool(turn.chunks) for turn in shown.turns[:cut])
            yield dropped, ExpertTrace((*turns, *shown.turns[cut:]))

    def _blanked(self, prompt: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Blank all tokens but those that the context has in common with the prompt, at its start and at its end."""
        length = min(len(prompt), len(ids))
        start = int(np.argmin(np.append(prompt[:length] == ids[:length], False)))
        room = min(len(prompt), len(ids) - start)
        end = int(np.argmin(np.append(prompt[::-1][:room] == ids[::-1][:room], False)))
        blanked = ids.copy()
        blanked[start : len(ids) - end] = self.renderer.codec.plain("\n")[0]
        return blanked

    def _target(self, task: Task, prompt_tokens: int, trace: ExpertTrace, shown: ExpertTrace) -> RenderedTrace | None:
        """Render the whole trace for SFT, else what is shown of it; ``None`` where neither fits after the prompt."""
        for candidate in (trace, shown):
            target = self._rendered(candidate, task, with_final=self.with_answer)
            if prompt_tokens + len(target.ids) <= self.max_tokens:
                return target
        return None

    def _rendered(self, trace: ExpertTrace, task: Task, *, with_final: bool = False) -> RenderedTrace:
        prompt = task.prompt
        return render_trace(self.renderer, trace, prompt.follow_ups, tools=prompt.tools, with_final=with_final)

    def _shown(self, trace: ExpertTrace, level: int) -> ExpertTrace:
        """Cut the trace's reasoning to what the context may show."""
        if self.context == "full":
            return ExpertTrace(trace.turns)
        level = MAX_LEVEL if self.context == "safe" else level
        return ExpertTrace(tuple(_cut(turn, level) for turn in trace.turns))

    def _context_ids(self, task: Task, prompt: npt.NDArray[np.int64], trace: ExpertTrace) -> npt.NDArray[np.int64]:
        if self.template == "turns":
            return np.concatenate([prompt, self._rendered(trace, task).ids])
        return np.array(self.renderer.prompt(self._quoted(task, trace), task.prompt.tools), dtype=np.int64)

    def _quoted(self, task: Task, trace: ExpertTrace) -> list[Message]:
        messages: list[dict[str, Any]] = [dict(message) for message in task.prompt.messages]
        quoted = _BLOCK_HEAD + quote_trace(trace, task.prompt.follow_ups) + _BLOCK_TAIL
        if self.template == "user_block":
            messages[-1]["content"] = f"{messages[-1]['content']}\n\n{quoted}"
        elif messages[0]["role"] == "system":
            messages[0]["content"] = f"{messages[0]['content']}\n\n{quoted}"
        else:
            messages.insert(0, {"role": "system", "content": quoted})
        return list(messages)


def _cut(turn: ExpertTurn, level: int) -> ExpertTurn:
    end = prefix_ends(turn.chunks, turn.calls)[level]
    kept: list[Chunk] = []
    for chunk in turn.chunks:
        if end <= 0:
            break
        kept.append(Chunk(chunk.text[:end], chunk.type))
        end -= len(chunk.text)
    return replace(turn, chunks=tuple(kept))


def quote_trace(trace: ExpertTrace, follow_ups: Sequence[UserTurn] = ()) -> str:
    """Quote a trace as plain text, for the block templates.

    Args:
        trace: The trace.
        follow_ups: The task's further user turns; each follows the reply that releases it.
    """
    coming = iter(follow_ups)
    return "\n".join(line for turn in trace.turns for line in _quoted_turn(turn, coming))


def _quoted_turn(turn: ExpertTurn, coming: Iterator[UserTurn]) -> Sequence[str]:
    lines = [turn.reasoning] if turn.reasoning else []
    if turn.reply is not None:
        lines += [f"reply: {turn.reply}", f"user: {next(coming).content}"]
    for call, response in zip(turn.calls, turn.responses, strict=True):
        lines += [f"call: {json.dumps(dict(call), ensure_ascii=False)}", f"response: {response}"]
    return lines
