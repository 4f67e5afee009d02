"""A finished rollout as plain JSON values and back, equal in every field: ids, turns, log-probabilities, counts."""

from collections.abc import Mapping
from typing import Any

from pact_lightning.dialogue.components import Component
from pact_lightning.dialogue.tool_call import ParsedCall
from pact_lightning.rollout.trajectory import RolloutTurn, Segment, StopReason, Trajectory
from pact_lightning.tasks.prompt import UserTurn


def stored_trajectory(trajectory: Trajectory) -> dict[str, Any]:
    """What has to be kept of a rollout; its prompt is known from its task."""
    return {
        "task_id": trajectory.task_id,
        "sample": trajectory.sample,
        "segments": [[list(segment.ids), int(segment.component), segment.turn] for segment in trajectory.segments],
        "turns": [_stored_turn(turn) for turn in trajectory.turns],
        "stop_reason": str(trajectory.stop_reason),
        "sampled_logps": list(trajectory.sampled_logps),
        "environment_reward": trajectory.environment_reward,
        "tool_calls": trajectory.tool_calls,
        "tool_timeouts": trajectory.tool_timeouts,
        "unanswered_calls": trajectory.unanswered_calls,
        "environment_failures": trajectory.environment_failures,
    }


def read_trajectory(record: Mapping[str, Any], prompt_ids: tuple[int, ...]) -> Trajectory:
    """The rollout that :func:`stored_trajectory` was given.

    Args:
        record: Its record.
        prompt_ids: Its prompt, token by token.

    Raises:
        KeyError: The record lacks a field.
        ValueError: A field holds no such value.
    """
    return Trajectory(
        task_id=record["task_id"],
        sample=record["sample"],
        prompt_ids=prompt_ids,
        segments=[Segment(tuple(ids), Component(component), turn) for ids, component, turn in record["segments"]],
        turns=[_read_turn(turn) for turn in record["turns"]],
        stop_reason=StopReason(record["stop_reason"]),
        sampled_logps=record["sampled_logps"],
        environment_reward=record["environment_reward"],
        tool_calls=record["tool_calls"],
        tool_timeouts=record["tool_timeouts"],
        unanswered_calls=record["unanswered_calls"],
        environment_failures=record["environment_failures"],
    )


def _stored_turn(turn: RolloutTurn) -> dict[str, Any]:
    return {
        "text": turn.text,
        "reasoning": turn.reasoning,
        "answer": turn.answer,
        "parsed": [[entry.call, entry.error] for entry in turn.parsed],
        "responses": turn.responses,
        "errors": turn.errors,
        "user": None if turn.user is None else [turn.user.content, [dict(tool) for tool in turn.user.tools]],
    }


def _read_turn(record: Mapping[str, Any]) -> RolloutTurn:
    user = record["user"]
    return RolloutTurn(
        text=record["text"],
        reasoning=record["reasoning"],
        answer=record["answer"],
        parsed=tuple(ParsedCall(call, error) for call, error in record["parsed"]),
        responses=tuple(record["responses"]),
        errors=tuple(record["errors"]),
        user=None if user is None else UserTurn(user[0], tuple(user[1])),
    )
