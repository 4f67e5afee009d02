"""What the sampled tokens of a phase say about the policy's distribution, without a further forward."""

from collections.abc import Mapping, Sequence

from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.group import Group


def sampling_counts(groups: Sequence[Group], renderer: ChatRenderer) -> dict[str, float]:
    """What :func:`sampling_signs` is made of; counts of several processes add up.

    Args:
        groups: The groups of a phase.
        renderer: The policy's renderer, which knows the control tokens.
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
    """Estimates from the tokens that the policy sampled [D].

    Sampled tokens are draws from the policy, so that the mean of ``-log p`` over them estimates its entropy, and the
    share of control tokens among them the mean probability that it gives to those.

    Args:
        counts: What :func:`sampling_counts` gave.

    Returns:
        ``entropy`` in nats per token, ``control_tokens`` in ``[0, 1]``, and ``empty``, the share of rollouts whose
        last turn is empty. Nothing where no token was sampled.
    """
    if not counts["sampled_tokens"]:
        return {}
    return {
        "entropy": -counts["sampled_logps"] / counts["sampled_tokens"],
        "control_tokens": counts["control_tokens"] / counts["sampled_tokens"],
        "empty": counts["empty"] / counts["sampled_rollouts"],
    }
