"""What the rollouts of a phase earned, took and show, over all processes."""

from collections.abc import Sequence

import lightning.pytorch as pl

from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.group import Group
from pact_lightning.rollout.engine import RolloutStats
from pact_lightning.sampling_signs import sampling_counts, sampling_signs
from pact_lightning.step_sync import over_processes


def rollout_figures(
    groups: Sequence[Group], stats: RolloutStats, renderer: ChatRenderer, trainer: pl.Trainer
) -> dict[str, float]:
    """Figures by name; all processes have to call this together.

    Args:
        groups: This process's groups of the phase.
        stats: What its rollouts took.
        renderer: The policy's renderer.
        trainer: The Trainer.

    Returns:
        Means over all rollouts or groups, and the signs of :func:`~pact_lightning.sampling_signs.sampling_signs`.
        ``seconds`` are those of the slowest process, for which the others wait. ``tokens`` is the mean length of a
        rollout behind its prompt, ``sampled_share`` how much of that the policy sampled.
    """
    rewards = [reward for group in groups for reward in group.rewards]
    own = {
        "groups": len(groups),
        "zero_variance": sum(group.zero_variance for group in groups),
        "rewarded": len(rewards),
        "reward": sum(rewards),
        "tokens": stats.tokens,
        "trajectory_tokens": sum(len(row.ids()) for group in groups for row in group.trajectories),
        "seconds": stats.seconds,
        "tool_seconds": stats.tool_seconds,
        "tool_timeouts": stats.tool_timeouts,
        "unanswered_calls": stats.unanswered_calls,
        "environment_failures": stats.environment_failures,
    } | sampling_counts(groups, renderer)
    processes = over_processes(trainer, own)
    found = {name: sum(process[name] for process in processes) for name in own}
    seconds = max(process["seconds"] for process in processes)
    return sampling_signs(found) | {
        "reward": found["reward"] / max(found["rewarded"], 1),
        "zero_variance": found["zero_variance"] / found["groups"],
        "tokens": found["trajectory_tokens"] / max(found["sampled_rollouts"], 1),
        "sampled_share": found["sampled_tokens"] / max(found["trajectory_tokens"], 1),
        "tokens_per_second": found["tokens"] / max(seconds, 1e-9),
        "seconds": seconds,
        "tool_share": found["tool_seconds"] / max(found["seconds"], 1e-9),
        "tool_timeouts": float(found["tool_timeouts"]),
        "unanswered_calls": float(found["unanswered_calls"]),
        "environment_failures": float(found["environment_failures"]),
    }
