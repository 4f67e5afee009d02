"""What the sampled tokens of a phase say about the policy's distribution, without a further forward."""

from collections.abc import Sequence

import numpy as np

from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.group import Group


def sampling_signs(groups: Sequence[Group], renderer: ChatRenderer) -> dict[str, float]:
    """Estimates from the tokens that the policy sampled [D].

    Sampled tokens are draws from the policy, so that the mean of ``-log p`` over them estimates its entropy, and the
    share of control tokens among them the mean probability that it gives to those.

    Args:
        groups: The groups of a phase.
        renderer: The policy's renderer, which knows the control tokens.

    Returns:
        ``entropy`` in nats per token, ``control_tokens`` in ``[0, 1]``, and ``empty``, the share of rollouts whose
        last turn is empty. Nothing where no token was sampled.
    """
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    logps = [logp for trajectory in trajectories for logp in trajectory.sampled_logps]
    if not logps:
        return {}
    sampled = np.concatenate([trajectory.ids()[trajectory.policy_mask()] for trajectory in trajectories])
    control = sum(renderer.codec.is_control(int(token)) for token in sampled)
    empty = sum(not trajectory.turns[-1].text.strip() for trajectory in trajectories)
    return {
        "entropy": -sum(logps) / len(logps),
        "control_tokens": control / len(sampled),
        "empty": empty / len(trajectories),
    }
