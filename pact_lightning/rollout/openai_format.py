"""Trajectories in OpenAI's message format, with each turn's reward and advantage, for other tools to read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pact_lightning.types.prompt import PromptView
from pact_lightning.types.trajectory import RolloutTurn, Trajectory

TOKEN_FIGURES = "privilege-"
"""How the names of the files in ``trajectories/`` begin that hold figures of single tokens, and no rollouts."""


def rollout_files(folder: Path) -> list[Path]:
    """List the files of rollouts in a run's ``trajectories/``, by name."""
    return sorted(path for path in folder.glob("*.jsonl") if not path.name.startswith(TOKEN_FIGURES))


def trajectory_record(
    prompt: PromptView,
    trajectory: Trajectory,
    *,
    rewards: Sequence[float] | None = None,
    advantages: Sequence[float] | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Return one rollout as a JSON object.

    Args:
        prompt: The rollout's prompt.
        trajectory: The rollout.
        rewards: Reward of each turn, in training.
        advantages: Advantage of each turn, in training.
        **facts: Further entries, such as the phase.
    """
    messages: list[dict[str, Any]] = [dict(message) for message in prompt.messages]
    for index, turn in enumerate(trajectory.turns):
        messages += _messages(index, turn)
    record: dict[str, Any] = {
        "task_id": trajectory.task_id,
        "sample": trajectory.sample,
        **facts,
        "stop_reason": str(trajectory.stop_reason),
        "messages": messages,
        "tokens": sum(len(segment.ids) for segment in trajectory.segments),
    }
    if rewards is not None:
        record["turn_rewards"] = list(rewards)
    if advantages is not None:
        record["turn_advantages"] = list(advantages)
    return record


def _messages(index: int, turn: RolloutTurn) -> list[dict[str, Any]]:
    assistant: dict[str, Any] = {"role": "assistant", "content": turn.answer, "reasoning_content": turn.reasoning}
    calls, responses = [], []
    for number, entry in enumerate(turn.parsed):
        if entry.call is not None:
            call_id = f"call_{index}_{number}"
            arguments = json.dumps(entry.call["arguments"], ensure_ascii=False)
            calls.append(
                {"id": call_id, "type": "function", "function": {"name": entry.call["name"], "arguments": arguments}}
            )
        else:
            call_id = ""
            assistant.setdefault("malformed_calls", []).append(entry.error)
            assistant["text"] = turn.text  # all that the policy wrote: such a call has no other place
        if number < len(turn.responses):
            response = {"role": "tool", "content": turn.responses[number], "error": turn.errors[number]}
            responses.append(response | ({"tool_call_id": call_id} if call_id else {}))
    if calls:
        assistant["tool_calls"] = calls
    if turn.parsed:
        assistant["content"] = turn.before_calls
    elif not turn.reasoning and not turn.answer:
        assistant["content"] = turn.text
        # A rollout that never began holds the reason as a response without a call.
        responses = [{"role": "tool", "content": response, "error": True} for response in turn.responses]
    if turn.user is not None:
        user: dict[str, Any] = {"role": "user", "content": turn.user.content}
        responses.append(user | ({"tools": [dict(tool) for tool in turn.user.tools]} if turn.user.tools else {}))
    return [assistant, *responses]
