"""Expert traces as tokens, labelled for the component-aware SFT loss."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
        turns: Index in the trace of the turn that every token belongs to, ``[N]``.
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

    Where the format has one call per turn, a turn of several becomes as many, each call with its response behind it;
    the reasoning stands in front of the first one, and its levels are those of the whole turn [D].

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
        ends = prefix_ends(turn.chunks, turn.calls)
        user = next(coming) if turn.reply is not None else None
        for part in _written(turn) if renderer.one_call else [turn]:
            answer = part.answer if part.reply is None else part.reply
            rendered = renderer.expert_turn(part.reasoning, part.calls, answer, before=after, tools=known)
            ids.append(rendered.ids)
            components.append(rendered.components)
            within = rendered.reasoning_end.tolist()
            levels.append(np.array([min_level_at(end, ends) if end else NEVER for end in within]))
            after, component = _after(renderer, part, user, rendered.ids.tolist())
            if after:
                ids.append(np.array(after, dtype=np.int64))
                components.append(np.full(len(after), int(component), dtype=np.int64))
                levels.append(np.full(len(after), NEVER, dtype=np.int64))
        known += () if user is None else user.tools
        turns.append(np.full(sum(map(len, ids)) - sum(map(len, turns)), index, dtype=np.int64))
    if not ids:
        empty = np.zeros(0, dtype=np.int64)
        return RenderedTrace(empty, empty, empty, empty)
    return RenderedTrace(np.concatenate(ids), np.concatenate(components), np.concatenate(turns), np.concatenate(levels))


def split_turns(trace: ExpertTrace) -> int:
    """Count the turns that a format with one call per turn writes as several."""
    return sum(len(turn.calls) > 1 for turn in trace.turns)


def _written(turn: ExpertTurn) -> list[ExpertTurn]:
    """Make a turn of several calls as many turns of one, the reasoning in front of the first."""
    if len(turn.calls) < 2 or len(turn.calls) != len(turn.responses):
        return [turn]  # without a response each they cannot be taken apart, and the format refuses them
    said = zip(turn.calls, turn.responses, strict=True)
    return [
        replace(turn, chunks=() if number else turn.chunks, calls=(call,), responses=(response,))
        for number, (call, response) in enumerate(said)
    ]


def _after(
    renderer: Renderer, turn: ExpertTurn, user: UserTurn | None, said: Sequence[int]
) -> tuple[list[int], Component]:
    """Render the environment's or the user's words after a turn; nothing follows the final one."""
    if turn.calls:
        return renderer.observation(turn.responses, after=said), Component.OBSERVATION
    if user is not None:
        return renderer.user_turn(user, after=said), Component.PROMPT
    return [], Component.PROMPT
