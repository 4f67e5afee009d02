"""Expert traces as tokens, labelled for the component-aware SFT loss."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pact_lightning.dialogue.renderer import Renderer
from pact_lightning.traces.levels import NEVER, min_level_at, prefix_ends
from pact_lightning.types.prompt import ToolSchema, UserTurn
from pact_lightning.types.trace import ExpertTrace, ExpertTurn
from pact_lightning.types.trajectory import Component


@dataclass(frozen=True, slots=True)
class RenderedTrace:
    """Tokens of ``h*``, to follow the prompt.

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


def render_trace(
    renderer: Renderer,
    trace: ExpertTrace,
    follow_ups: Sequence[UserTurn] = (),
    *,
    tools: Sequence[ToolSchema] = (),
    with_final: bool = False,
) -> RenderedTrace:
    """Render a trace as real chat turns.

    Args:
        renderer: The policy's renderer.
        trace: The trace.
        follow_ups: The task's further user turns; each follows the trace's reply that releases it.
        tools: Schemas of the task's tools; those of its follow-ups come along.
        with_final: Append the final answer turn. For plain supervised training only: a privileged context never
            holds it (leak guard, METHOD section 1).

    Returns:
        The tokens from the first expert token on. Without the final turn they end in an opened assistant turn, which
        a rollout can continue.

    Raises:
        ValueError: The trace replies to more user turns than the task has follow-ups for, or the format cannot write
            one of its turns.
    """
    if trace.replies > len(follow_ups):
        raise ValueError(
            f"the trace replies to {trace.replies} user turns, but only {len(follow_ups)} follow; the reply to the "
            "last one belongs in `final`"
        )
    coming = iter(follow_ups)
    ids: list[npt.NDArray[np.int64]] = []
    components: list[npt.NDArray[np.int64]] = []
    turns: list[npt.NDArray[np.int64]] = []
    levels: list[npt.NDArray[np.int64]] = []
    shown = [*trace.turns, trace.final] if with_final and trace.final is not None else list(trace.turns)
    after: list[int] = []
    known = list(tools)
    for index, turn in enumerate(shown):
        answer = turn.answer if turn.reply is None else turn.reply
        rendered = renderer.expert_turn(turn.reasoning, turn.calls, answer, before=after, tools=known)
        ends = prefix_ends(turn.chunks, turn.calls)
        ids.append(rendered.ids)
        components.append(rendered.components)
        levels.append(np.array([min_level_at(end, ends) if end else NEVER for end in rendered.reasoning_end.tolist()]))
        user = next(coming) if turn.reply is not None else None
        known += () if user is None else user.tools
        after, component = _after(renderer, turn, user, rendered.ids.tolist())
        if after:
            ids.append(np.array(after, dtype=np.int64))
            components.append(np.full(len(after), int(component), dtype=np.int64))
            levels.append(np.full(len(after), NEVER, dtype=np.int64))
        turns.append(np.full(sum(map(len, ids)) - sum(map(len, turns)), index, dtype=np.int64))
    if not ids:
        empty = np.zeros(0, dtype=np.int64)
        return RenderedTrace(empty, empty, empty, empty)
    return RenderedTrace(np.concatenate(ids), np.concatenate(components), np.concatenate(turns), np.concatenate(levels))


def _after(
    renderer: Renderer, turn: ExpertTurn, user: UserTurn | None, said: Sequence[int]
) -> tuple[list[int], Component]:
    """Render the environment's or the user's words after a turn; nothing follows the final one."""
    if turn.calls:
        return renderer.observation(turn.responses, after=said), Component.OBSERVATION
    if user is not None:
        return renderer.user_turn(user, after=said), Component.PROMPT
    return [], Component.PROMPT
