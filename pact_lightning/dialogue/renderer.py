"""Renderer: what rollouts, contexts and supervised training ask of a model family's dialogue format."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.types.prompt import Message, ToolSchema, UserTurn
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trajectory import Component, RolloutTurn, Segment


@dataclass(frozen=True, slots=True)
class RenderedTurn:
    """Assistant turn as tokens.

    Attributes:
        ids: Token ids, ``[N]``, the end-of-turn token included.
        components: :class:`Component` of every token, ``[N]``.
        reasoning_end: Character of the reasoning at which each token ends, ``[N]``; 0 outside the reasoning.
    """

    ids: npt.NDArray[np.int64]
    components: npt.NDArray[np.int64]
    reasoning_end: npt.NDArray[np.int64]


class Renderer(Protocol):
    """Renderer of prompts, observations and expert turns for one tokenizer, and reader of sampled turns.

    Every turn's tokens extend the tokens before it: nothing that was sampled is encoded again.

    Attributes:
        codec: Codec of the tokenizer.
        family: Name of the format, as ``policy.renderer`` takes it.
        end_ids: All tokens that end a turn; the one that ended it is part of no answer.
        template_arguments: Further arguments under which the tokenizer's own template renders the same.
        one_call: Whether a turn has one call at most.
    """

    codec: TextCodec
    family: str
    end_ids: frozenset[int]
    template_arguments: Mapping[str, Any]
    one_call: bool

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[int]:
        """Render the prompt ``x``: system turn, tools' schemas, user turns, opened assistant turn.

        Raises:
            ValueError: A message is neither a leading system message nor a user message.
        """
        ...

    def observation(self, responses: Sequence[str], *, after: Sequence[int] = ()) -> list[int]:
        """Render the tool responses after a turn, up to the next opened assistant turn.

        Args:
            responses: The responses.
            after: The turn's tokens. A last one that is not the format's own end of a turn stays, and that end follows
                as context: no sampled token is exchanged, and the turn is closed all the same [D].
        """
        ...

    def user_turn(self, turn: UserTurn, *, after: Sequence[int] = ()) -> list[int]:
        """Render a later user turn, up to the next opened assistant turn; see :meth:`observation`."""
        ...

    def expert_turn(
        self,
        reasoning: str,
        calls: Sequence[ToolCall],
        answer: str = "",
        *,
        before: Sequence[int] = (),
        tools: Sequence[ToolSchema] = (),
    ) -> RenderedTurn:
        """Render an expert's turn as the policy would have to write it; :meth:`read_turn` gives it back.

        Args:
            reasoning: The expert's thinking; may be empty.
            calls: The calls. A turn with calls has no answer.
            answer: The answer or reply.
            before: Tokens that stand before the turn; by default a prompt's.
            tools: The tools on offer; formats without JSON read arguments by their schemas.

        Raises:
            ValueError: The format cannot write the turn, or a text holds half of a character.
        """
        ...

    def read_turn(
        self, ids: Sequence[int], *, before: Sequence[int] = (), tools: Sequence[ToolSchema] = ()
    ) -> RolloutTurn:
        """Parse a sampled turn into reasoning, calls (or their mistakes) and answer; responses come later."""
        ...

    def components(self, ids: Sequence[int], *, before: Sequence[int] = ()) -> npt.NDArray[np.int64]:
        """Label the tokens of one assistant turn, sampled or rendered, ``[N]``.

        A token that straddles two components (Qwen has one for a full stop with a line break) gets the first one.
        """
        ...

    def turn_segments(self, ids: Sequence[int], turn: int, *, before: Sequence[int] = ()) -> list[Segment]:
        """Cut a sampled turn into runs of one component."""
        components = self.components(ids, before=before)
        cuts = [0, *(np.flatnonzero(np.diff(components)) + 1).tolist(), len(ids)]
        return [
            Segment(tuple(ids[start:stop]), Component(int(components[start])), turn)
            for start, stop in itertools.pairwise(cuts)
            if stop > start
        ]
