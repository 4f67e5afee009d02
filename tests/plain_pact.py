"""PACT of one group, computed plainly: one sequence per forward, dense logits, formulas written out."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from hand_made import bundled_renderer

from pact_lightning.policy.loading import load_policy
from pact_lightning.policy.state_dict import load_trainable_state, trainable_state
from pact_lightning.traces.tokens import render_trace
from pact_lightning.types.trajectory import Component

RENDERER = bundled_renderer()


class Plain:
    """The same policy in eager attention, one sequence per forward, and what PACT makes of it."""

    def __init__(self, module, temperature=1.0):
        self.module = module
        self.temperature = temperature
        config = replace(module.policy_config, attn_implementation="eager")
        self.model = load_policy(config)
        self.start = load_policy(config) if config.adapter == "full" else None
        load_trainable_state(self.model, trainable_state(module.model))

    def distribution(self, context, ids, model=None, temperature=None):
        """Log-probabilities of every token of the vocabulary at every token of ``ids``, ``[R, V]``."""
        row = torch.from_numpy(np.concatenate([context, ids]))[None]
        logits = (model or self.model)(row).logits[0, len(context) - 1 : -1]
        return (logits / (temperature or self.temperature)).log_softmax(-1)

    def reference(self, context, ids):
        with torch.no_grad(), nullcontext() if self.start else self.model.disable_adapter():
            return self.distribution(context, ids, self.start)

    def prompt(self, group):
        return np.array(group.trajectories[0].prompt_ids)

    def privileged(self, group):
        return np.concatenate([self.prompt(group), render_trace(RENDERER, group.task.trace).ids])

    def rollouts(self, group, context):
        """Eq. 4-5 or 7-8, KL and entropy: mean over a rollout's policy tokens, then over rollouts."""
        coefficients, losses = self.module.coefficients, []
        for sample, trajectory in enumerate(group.trajectories):
            ids, kept = trajectory.ids(), np.flatnonzero(trajectory.components() != Component.OBSERVATION)
            full = self.distribution(context, ids)[kept]
            at = torch.arange(len(kept)), torch.from_numpy(ids[kept])
            logp, ref = full[at], self.reference(context, ids)[kept][at]
            old = logp.detach() if group.old_logps is None else group.old_logps[sample][kept]
            turns = [segment.turn for segment in trajectory.segments for _ in segment.ids]
            advantage = torch.tensor([group.advantages[sample][turns[n]] for n in kept])
            ratio = (logp - old).exp()
            objective = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            objective = torch.where(advantage < 0, torch.max(objective, 3.0 * advantage), objective)
            gap = (ref - logp).clamp(-10, 10)
            entropy = -(full.exp() * full).sum(-1)
            losses.append(
                (-objective + coefficients.kl * (gap.exp() - gap - 1) - coefficients.entropy * entropy).mean()
            )
        return torch.stack(losses).mean()

    def sft(self, group):
        """Eq. 9-11 under the prompt: plain pi_theta, whatever rollouts are sampled at."""
        trace, supervision = render_trace(RENDERER, group.task.trace), self.module.supervision
        logp = self.distribution(self.prompt(group), trace.ids, temperature=1.0)[
            torch.arange(len(trace.ids)), torch.from_numpy(trace.ids)
        ]
        active = (trace.components == Component.REASONING) & (trace.min_levels <= supervision.level)
        weights = active + supervision.tool_call_scale * (trace.components == Component.TOOL_CALL)
        return -(torch.from_numpy(weights) * logp).sum() / weights.sum()

    def gradient(self, loss):
        self.model.zero_grad()
        loss.backward()
        named = self.model.named_parameters()
        return {name: weight.grad for name, weight in named if weight.grad is not None}
