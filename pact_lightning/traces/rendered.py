"""An expert trace as tokens, with what the component-aware SFT loss needs to know of each."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pact_lightning.dialogue.components import Component
from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.traces.levels import NEVER, min_level_at, prefix_ends
from pact_lightning.traces.schema import ExpertTrace


@dataclass(frozen=True, slots=True)
class RenderedTrace:
    """Tokens of ``h*`` as they follow the prompt.

    Attributes:
        ids: Token ids, ``[N]``.
        components: :class:`Component` of every token, ``[N]``.
        turns: Turn index of every token, ``[N]``.
        min_levels: Lowest level L1..L4 whose reasoning prefix holds the token; 5 outside every prefix, ``[N]``.
    """

    ids: npt.NDArray[np.int64]
    components: npt.NDArray[np.int64]
    turns: npt.NDArray[np.int64]
    min_levels: npt.NDArray[np.int64]


def render_trace(renderer: ChatRenderer, trace: ExpertTrace, *, with_final: bool = False) -> RenderedTrace:
    """Renders a trace as real chat turns.

    Args:
        renderer: The policy's renderer.
        trace: The trace.
        with_final: Append the final answer turn. For plain supervised training only: a privileged context never
            has it (leak guard, METHOD section 1).

    Returns:
        The tokens from the first expert token on. Without the final turn they end in an opened assistant turn, so
        that a rollout can follow.
    """
    ids: list[npt.NDArray[np.int64]] = []
    components: list[npt.NDArray[np.int64]] = []
    turns: list[npt.NDArray[np.int64]] = []
    levels: list[npt.NDArray[np.int64]] = []
    shown = [*trace.turns, trace.final] if with_final and trace.final is not None else list(trace.turns)
    for index, turn in enumerate(shown):
        rendered = renderer.expert_turn(turn.reasoning, turn.calls, turn.answer)
        ends = prefix_ends(turn.chunks, turn.calls)
        ids.append(rendered.ids)
        components.append(rendered.components)
        levels.append(np.array([min_level_at(end, ends) if end else NEVER for end in rendered.reasoning_end.tolist()]))
        if turn.calls:
            observation = np.array(renderer.observation(turn.responses), dtype=np.int64)
            ids.append(observation)
            components.append(np.full_like(observation, int(Component.OBSERVATION)))
            levels.append(np.full_like(observation, NEVER))
        turns.append(np.full(sum(map(len, ids)) - sum(map(len, turns)), index, dtype=np.int64))
    if not ids:
        empty = np.zeros(0, dtype=np.int64)
        return RenderedTrace(empty, empty, empty, empty)
    return RenderedTrace(np.concatenate(ids), np.concatenate(components), np.concatenate(turns), np.concatenate(levels))
