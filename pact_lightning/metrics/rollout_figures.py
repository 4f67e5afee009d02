"""Metrics of a phase's rollouts, summed over processes, and their line in the log.

Rewards, lengths, durations and failed tools come from the rollouts. Entropy and control tokens are estimated from the
sampled tokens, without a further forward pass.
"""

from collections.abc import Mapping, Sequence

import lightning.pytorch as pl

from pact_lightning.credit.group import Group
from pact_lightning.dialogue.renderer import Renderer
from pact_lightning.rollout.engine import RolloutStats
from pact_lightning.utils.processes import over_processes

FIGURES = (
    *("entropy", "control_tokens", "empty", "reward", "zero_variance", "single_rollout", "tokens", "sampled_share"),
    *("tokens_per_second", "seconds", "tool_share", "tool_timeouts", "unanswered_calls", "environment_failures"),
    *("prompts", "resampled", "sampled_tokens", "off_spec"),
)
"""Names of :func:`rollout_figures`."""


def sampling_counts(groups: Sequence[Group], renderer: Renderer) -> dict[str, float]:
    """Count what :func:`sampling_signs` needs; the counts of several processes add up.

    Args:
        groups: The groups of a phase.
        renderer: The policy's renderer; its codec knows the control tokens.
    """
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    logps = [logp for trajectory in trajectories for logp in trajectory.sampled_logps]
    sampled = [trajectory.ids()[trajectory.policy_mask()] for trajectory in trajectories]
    return {
        "sampled_rollouts": len(trajectories),
        "sampled_tokens": len(logps),
        "sampled_logps": sum(logps),
        "control_tokens": sum(renderer.codec.is_control(int(token)) for ids in sampled for token in ids),
        "empty": sum(not trajectory.turns[-1].text.strip() for trajectory in trajectories),
    }


def sampling_signs(counts: Mapping[str, float]) -> dict[str, float]:
    """Estimate the policy's distribution from the tokens that it sampled [D].

    Sampled tokens are draws from the policy. The mean of ``-log p`` over them estimates its entropy; the share of
    control tokens among them estimates their mean probability.

    Args:
        counts: Sums of :func:`sampling_counts`.

    Returns:
        ``entropy`` in nats per token, ``control_tokens`` in ``[0, 1]``, and ``empty``, the share of rollouts whose
        last turn is empty. An empty dictionary if no token was sampled.
    """
    if not counts["sampled_tokens"]:
        return {}
    return {
        "entropy": -counts["sampled_logps"] / counts["sampled_tokens"],
        "control_tokens": counts["control_tokens"] / counts["sampled_tokens"],
        "empty": counts["empty"] / counts["sampled_rollouts"],
    }


def rollout_figures(
    groups: Sequence[Group], stats: RolloutStats, renderer: Renderer, trainer: pl.Trainer
) -> dict[str, float]:
    """Compute a phase's metrics by name; all processes have to call this together.

    Args:
        groups: This process's groups of the phase, those that others have replaced among them.
        stats: Tokens, seconds and failures of its rollouts.
        renderer: The policy's renderer.
        trainer: The Trainer.

    Returns:
        Means over all rollouts or groups, and the estimates of :func:`sampling_signs`. ``seconds`` are those of the
        slowest process, for which the others wait. ``tokens`` is the mean length of a rollout behind its prompt,
        ``sampled_share`` the share of it that the policy sampled. ``prompts`` were rolled out, with ``sampled_tokens``
        in all; ``resampled`` of them are not trained on, since others have replaced them. ``off_spec`` is the share of
        rollouts that were sampled with the trace in their prompt, 0 unless a rival of PACT asks for it.
    """
    rewards = [reward for group in groups for reward in group.rewards]
    own = {
        "groups": len(groups),
        "zero_variance": sum(group.zero_variance for group in groups),
        "single_rollout": sum(group.single for group in groups),
        "rewarded": len(rewards),
        "reward": sum(rewards),
        "tokens": stats.tokens,
        "resampled": sum(group.replaced for group in groups),
        "off_spec": sum(len(group.off_spec) for group in groups),
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
        **{name: found[name] / found["groups"] for name in ("zero_variance", "single_rollout")},
        "tokens": found["trajectory_tokens"] / max(found["sampled_rollouts"], 1),
        "off_spec": found["off_spec"] / max(found["sampled_rollouts"], 1),
        "sampled_share": found["sampled_tokens"] / max(found["trajectory_tokens"], 1),
        "tokens_per_second": found["tokens"] / max(seconds, 1e-9),
        "seconds": seconds,
        "tool_share": found["tool_seconds"] / max(found["seconds"], 1e-9),
        "prompts": float(found["groups"]),
        "sampled_tokens": float(found["tokens"]),
        "resampled": float(found["resampled"]),
        **{name: float(found[name]) for name in ("tool_timeouts", "unanswered_calls", "environment_failures")},
    }


def rollout_line(phase: int, metrics: Mapping[str, float]) -> str:
    """Describe a phase's rollouts in one line of the log."""
    found = {name.removeprefix("rollout/"): value for name, value in metrics.items()}
    correct = f", {found['answer_correct']:.0%} correct" if "answer_correct" in found else ""
    steps = "step" if found["staleness"] == 1 else "steps"
    stale = f", weights were {found['staleness']:.0f} {steps} old" if found["staleness"] else ""
    replaced = f", {found['resampled']:.0f} of {found['prompts']:.0f} prompts replaced" if found["resampled"] else ""
    return (
        f"phase {phase}: mean reward {found['reward']:.2f}{correct}, {found['answered']:.0%} answered, "
        f"{found['turns']:.1f} turns and {found['calls']:.1f} calls each, {found['zero_variance']:.0%} of prompts "
        f"gave no learning signal (all rollouts scored the same){replaced}, "
        f"rollouts took {found['seconds']:.1f} s{stale}"
    )
