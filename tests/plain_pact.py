"""PACT once more, from METHOD.md alone: one sequence per forward, Hugging Face's own attention, plain formulas.

Nothing of ``objectives/``, ``credit/`` and ``update/`` is imported. What is taken from the package is what the formulas
are about: the tokens of prompts, traces and rollouts, their components, and the levels of reasoning.
"""

import json
import math
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from hand_made import bundled_renderer

from pact_lightning.policy.loading import load_policy
from pact_lightning.policy.state_dict import load_trainable_state, trainable_state
from pact_lightning.traces.tokens import render_trace
from pact_lightning.types.trajectory import Component

RENDERER = bundled_renderer()


@dataclass(frozen=True)
class Method:
    """The settings of METHOD sections 2 to 5 that the loss depends on."""

    beta: float = 0.1
    kl: float = 0.001
    entropy: float = 0.001
    clip: float = 0.2
    dual: float = 3.0
    gamma: float = 0.9
    eps: float = 1e-6
    level: int = 4
    scale: float = 0.8
    normalizer: str = "weight_sum"
    delimiters: bool = False
    template: str = "turns"
    ratio_context: str = "trace"
    keep_zero_variance: bool = False


def normalised(values, eps):
    """Section 3: (v - mean) / (unbiased std + eps); a single value stays raw."""
    if len(values) == 1:
        return values
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return [(value - mean) / (deviation + eps) for value in values]


def advantages(rewards, gamma, eps):
    """Section 3, points 4 to 6: per rollout and turn, A = A^g + A^l."""
    whole = normalised([sum(row) for row in rewards], eps)
    found = [[0.0] * len(row) for row in rewards]
    for turn in range(max(map(len, rewards))):
        reached = [k for k, row in enumerate(rewards) if len(row) > turn]
        returns = [sum(gamma ** (u - turn) * rewards[k][u] for u in range(turn, len(rewards[k]))) for k in reached]
        for k, value in zip(reached, normalised(returns, eps), strict=True):
            found[k][turn] = whole[k] + value
    return found


class Plain:
    """The same policy in eager attention, one sequence per forward, and what PACT makes of it."""

    def __init__(self, module, temperature=1.0, dtype=torch.float32):
        self.module = module
        self.temperature = temperature
        self.dtype = dtype
        config = replace(module.policy_config, attn_implementation="eager")
        self.model = load_policy(config).to(dtype)
        self.start = load_policy(config).to(dtype) if config.adapter == "full" else None
        self.take_weights()

    def take_weights(self):
        """Take the module's present weights."""
        load_trainable_state(self.model, trainable_state(self.module.model))

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

    def privileged(self, group, template="turns"):
        """Section 5, point 1: c^h = [x ; h*] as real turns, or quoted in the user's or the system's message."""
        if template == "turns":
            return np.concatenate([self.prompt(group), render_trace(RENDERER, group.task.trace).ids])
        lines = []
        for turn in group.task.trace.turns:
            lines += [turn.reasoning] * bool(turn.reasoning)
            for call, response in zip(turn.calls, turn.responses, strict=True):
                lines += [f"call: {json.dumps(call)}", f"response: {response}"]
        quoted = "\n".join(
            ["An expert solved this task as follows.", "<expert_trace>", *lines, "</expert_trace>"],
        )
        messages = [dict(message) for message in group.task.prompt.messages]
        place = {"user_block": -1, "system_block": 0}[template]
        assert messages[place]["role"] == template.removesuffix("_block")
        messages[place]["content"] += "\n\n" + quoted
        return np.array(RENDERER.prompt(messages, group.task.prompt.tools))

    def of_policy(self, trajectory):
        """Places of the tokens that the policy wrote."""
        return np.flatnonzero(trajectory.components() != Component.OBSERVATION)

    def logps(self, context, trajectory):
        """Log-probabilities of a rollout's policy tokens."""
        ids, kept = trajectory.ids(), self.of_policy(trajectory)
        return self.distribution(context, ids)[kept, ids[kept]]

    def rollouts(self, group, context, method=None, *, by_turn=None, old=None):
        """Eq. 4-5 or 7-8, KL and entropy: mean over a rollout's policy tokens, then over rollouts."""
        weights = self.module.coefficients
        method = method or Method(kl=weights.kl, entropy=weights.entropy)
        by_turn = group.advantages if by_turn is None else by_turn
        losses = []
        for sample, trajectory in enumerate(group.trajectories):
            ids, kept = trajectory.ids(), self.of_policy(trajectory)
            full = self.distribution(context, ids)[kept]
            at = torch.arange(len(kept)), torch.from_numpy(ids[kept])
            logp, ref = full[at], self.reference(context, ids)[kept][at]
            before = logp.detach() if old is None else old[sample]
            if old is None and group.old_logps is not None:
                before = group.old_logps[sample][kept]
            turns = [segment.turn for segment in trajectory.segments for _ in segment.ids]
            advantage = torch.tensor([by_turn[sample][turns[n]] for n in kept], dtype=self.dtype)
            ratio = (logp - before).exp()
            objective = torch.min(ratio * advantage, ratio.clamp(1 - method.clip, 1 + method.clip) * advantage)
            objective = torch.where(advantage < 0, torch.max(objective, method.dual * advantage), objective)
            gap = (ref - logp).clamp(-10, 10)
            entropy = -(full.exp() * full).sum(-1)
            losses.append((-objective + method.kl * (gap.exp() - gap - 1) - method.entropy * entropy).mean())
        return torch.stack(losses).mean()

    def sft(self, group, method=None):
        """Eq. 9-11 under the prompt: plain pi_theta, whatever rollouts are sampled at."""
        supervision = self.module.supervision
        method = method or Method(level=supervision.level, scale=supervision.tool_call_scale)
        trace = render_trace(RENDERER, group.task.trace)
        full = self.distribution(self.prompt(group), trace.ids, temperature=1.0)
        logp = full[torch.arange(len(trace.ids)), torch.from_numpy(trace.ids)]
        scaled = trace.components == Component.TOOL_CALL
        if method.delimiters:
            scaled = scaled | (trace.components == Component.DELIMITER)
        weights = method.scale * scaled + (
            (trace.components == Component.REASONING) & (trace.min_levels <= method.level)
        )
        divisor = weights.sum() if method.normalizer == "weight_sum" else (weights > 0).sum()
        return -(torch.from_numpy(weights) * logp).sum() / divisor if divisor else logp.sum() * 0.0

    def denominators(self, group, method):
        """pi_old of the present weights: under the ratio's own context, or under x for ``cross``."""
        under_trace = self.uses_trace(group) and method.ratio_context == "trace"
        context = self.privileged(group, method.template) if under_trace else self.prompt(group)
        with torch.no_grad():
            return [self.logps(context, trajectory) for trajectory in group.trajectories]

    def uses_trace(self, group):
        return group.anchored != "drawn" and group.task.trace is not None

    def loss(self, group, rewards, old, method):
        """Eq. 12-14 of one prompt, with section 5, points 10 to 12; ``None`` where no term is left."""
        terms = []
        with_trace = self.uses_trace(group)
        by_turn = advantages(rewards, method.gamma, method.eps)
        flat = all(abs(value) < 1e-9 for row in by_turn for value in row)
        if len(rewards) > 1 and (method.keep_zero_variance or not flat):
            under_trace = with_trace and method.ratio_context != "prompt"
            context = self.privileged(group, method.template) if under_trace else self.prompt(group)
            terms.append(self.rollouts(group, context, method, by_turn=by_turn, old=old))
        if with_trace:
            terms.append(method.beta * self.sft(group, method))
        return sum(terms) if terms else None

    def gradient(self, loss):
        self.model.zero_grad()
        loss.backward()
        return self.gradients()

    def gradients(self):
        named = self.model.named_parameters()
        return {name: weight.grad for name, weight in named if weight.grad is not None}
