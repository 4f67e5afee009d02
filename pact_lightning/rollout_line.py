"""What the rollouts of a phase did, in one line of the log."""

from collections.abc import Mapping


def rollout_line(phase: int, metrics: Mapping[str, float]) -> str:
    """What the rollouts of a phase did, for people who watch."""
    found = {name.removeprefix("rollout/"): value for name, value in metrics.items()}
    correct = f", {found['answer_correct']:.0%} correct" if "answer_correct" in found else ""
    steps = "step" if found["staleness"] == 1 else "steps"
    stale = f", by weights {found['staleness']:.0f} {steps} old" if found["staleness"] else ""
    return (
        f"phase {phase}: mean reward {found['reward']:.2f}{correct}, {found['answered']:.0%} answered, "
        f"{found['turns']:.1f} turns and {found['calls']:.1f} calls each, {found['zero_variance']:.0%} of the prompts "
        f"without variance, {found['seconds']:.1f} s of rollouts{stale}"
    )
