"""Log-probabilities of chosen tokens: the head runs at those tokens only, in chunks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.checkpoint import checkpoint

from pact_lightning.policy.attention.choice import AttentionChoice, make_plan
from pact_lightning.policy.attention.plan import AttentionPlan
from pact_lightning.policy.divergence import chunked_kl
from pact_lightning.policy.linear_logprobs import linear_logprobs
from pact_lightning.policy.own_attention import attends_by_plan, states_by_rows
from pact_lightning.policy.packing import Pack

Head = Callable[[Tensor], Tensor]
"""Hidden states ``[n, D]`` -> logits ``[n, V]``."""


@dataclass(frozen=True, slots=True)
class LogProbs:
    """Log-probabilities of tokens, in float32, or in float64 for a policy in float64.

    Attributes:
        logp: ``[N]``, natural logarithm.
        entropy: Entropy of the distribution each token was drawn from ``[N]``, in nats; ``None`` if not asked for.
        hidden: Hidden states that predict the tokens that went through the head, ``[n, D]``; ``None`` if not asked for.
        kl: Divergence from the distribution in another context ``[N]``, in nats; ``None`` if not asked for.
    """

    logp: Tensor
    entropy: Tensor | None
    hidden: Tensor | None = None
    kl: Tensor | None = None


def chunked_logprobs(
    hidden: Tensor,
    head: Tensor | Head,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    chunk_size: int = 1024,
    with_entropy: bool = False,
) -> LogProbs:
    """Score targets by ``log softmax(head(hidden) / temperature)``, never with all logits in memory.

    At most ``chunk_size x V`` logits exist at a time. A plain linear head goes through
    :func:`.linear_logprobs.linear_logprobs`, whose gradient is written out; any other head is run chunk by chunk, and
    each chunk anew in the backward pass. Everything after the head's own product is float32 or wider [D].

    Args:
        hidden: ``[N, D]``.
        head: The head's weight ``[V, D]``, or the head itself, ``[n, D] -> [n, V]``.
        targets: Token ids ``[N]``.
        temperature: Divisor of the logits: one for all, or one per token ``[N]``.
        chunk_size: Tokens whose logits exist at the same time.
        with_entropy: Whether entropies are wanted; they carry gradient too.

    Raises:
        ValueError: The temperature is not positive, the chunk size is below 1, or the lengths differ.
    """
    if not (isinstance(temperature, Tensor) or temperature > 0):  # of tensors it would wait for the device
        raise ValueError(f"log-probabilities need a temperature above 0, got {temperature}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if hidden.shape[0] != targets.shape[0]:
        raise ValueError(f"{hidden.shape[0]} hidden states were given for {targets.shape[0]} targets")
    plain = _plain_linear(head)
    if plain is not None:
        weight, bias = plain
        states = hidden.to(weight.dtype)
        return LogProbs(
            *linear_logprobs(
                states,
                weight,
                bias,
                targets,
                temperature=temperature,
                chunk_size=chunk_size,
                with_entropy=with_entropy,
            )
        )
    assert not isinstance(head, Tensor)  # a weight alone is plain
    logps: list[Tensor] = []
    entropies: list[Tensor] = []
    divisors = torch.as_tensor(temperature, dtype=_wide(hidden.dtype), device=hidden.device).expand(len(targets))  # [N]
    parts = [torch.split(part, chunk_size) for part in (hidden, targets, divisors)]
    for rows, ids, divisor in zip(*parts, strict=True):
        logp, entropy = checkpoint(
            _score, rows, head, ids, divisor, with_entropy, use_reentrant=False, preserve_rng_state=False
        )
        logps.append(logp)
        if entropy is not None:
            entropies.append(entropy)
    return LogProbs(torch.cat(logps), torch.cat(entropies) if with_entropy else None)


def _plain_linear(head: Tensor | Head) -> tuple[Tensor, Tensor | None] | None:
    """Return weight and bias of a head without adapter, quantised weight or hook; ``None`` for any other head."""
    if isinstance(head, Tensor):
        return head, None
    if isinstance(head, _OutputHead) and (head.cap is not None or head.scale != 1.0):
        return None
    module = head.module if isinstance(head, _OutputHead) else head
    if type(module) is not nn.Linear or is_parametrized(module):
        return None
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return None
    return module.weight, module.bias


def _score(
    hidden: Tensor, head: Head, targets: Tensor, temperature: Tensor, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    logits = head(hidden)  # [n, V]
    logits = logits.to(_wide(logits.dtype)) / temperature[:, None]
    normalizer = logits.logsumexp(-1)  # [n]
    logp = logits.gather(-1, targets[:, None])[:, 0] - normalizer  # [n]
    if not with_entropy:
        return logp, None
    # H = logZ - E[logit]: no second [n, V] tensor of log-probabilities.
    return logp, normalizer - (logits.softmax(-1) * logits).sum(-1)


def token_logprobs(
    model: nn.Module,
    pack: Pack,
    *,
    only: Sequence[Tensor] | None = None,
    temperature: float | Sequence[float] = 1.0,
    chunk_size: int = 1024,
    with_entropy: bool = False,
    keep_hidden: bool = False,
    against: Sequence[Tensor | None] | None = None,
    attention: AttentionChoice | None = None,
) -> list[LogProbs]:
    """Run the decoder once on a pack and score every read.

    Args:
        model: A causal language model, with or without a PEFT adapter. One that was loaded with another
            ``attn_implementation`` than ``pact`` runs the pack's sequences as plain rows.
        pack: One forward.
        only: For every read of the pack a mask ``[R]``; the head runs where it is True, elsewhere the result is 0
            and carries no gradient. Without it, everywhere.
        temperature: Divisor of the logits: one for all, or one per read of the pack.
        chunk_size: Tokens whose logits exist at the same time.
        with_entropy: Whether entropies are wanted.
        keep_hidden: Whether hidden states are wanted.
        against: For every read the hidden states of its tokens in another context, as ``keep_hidden`` gave them, or
            ``None``; the divergence of the policy from the distributions that they predict is then computed.
        attention: The run's attention path; by default the one that ``auto`` stands for, unchecked.

    Returns:
        One entry per ``pack.reads``, with tensors ``[R]`` on the model's device.

    Raises:
        ValueError: A mask does not fit its read, or the model is no causal language model of transformers.
    """
    decoder, head = decoder_and_head(model)
    selected = _selection(pack, only)
    device = next(decoder.parameters()).device
    states = _states(decoder, pack, device, attention)  # [T, D]
    predictors = torch.cat([read.predictors for read in pack.reads])[selected].to(device)  # [N]
    targets = torch.cat([read.targets for read in pack.reads])[selected].to(device)  # [N]
    hidden = states.index_select(0, predictors)  # [N, D]
    lengths = [read.targets.shape[0] for read in pack.reads]
    divisor = _by_token(temperature, lengths, selected, hidden)
    scores = chunked_logprobs(
        hidden, head, targets, temperature=divisor, chunk_size=chunk_size, with_entropy=with_entropy
    )
    where = selected.nonzero()[:, 0].to(device)  # [N]

    def spread(values: Tensor) -> tuple[Tensor, ...]:
        return torch.split(values.new_zeros(selected.shape[0]).index_put((where,), values), lengths)

    none = [None] * len(lengths)
    counts = [int(part.sum()) for part in torch.split(selected, lengths)]
    kept = torch.split(hidden, counts) if keep_hidden else none
    entropies = none if scores.entropy is None else spread(scores.entropy)
    kl = (
        None if against is None else _kl_from(hidden, head, against, counts, temperature=divisor, chunk_size=chunk_size)
    )
    kls = none if kl is None else spread(kl)
    return [LogProbs(*parts) for parts in zip(spread(scores.logp), entropies, kept, kls, strict=True)]


def _states(decoder: nn.Module, pack: Pack, device: torch.device, attention: AttentionChoice | None) -> Tensor:
    """Run the decoder once on a pack, or on its rows, and return the last hidden states, ``[T, D]``."""
    if not attends_by_plan(decoder):
        return states_by_rows(decoder, pack, device)
    if attention is None:
        plan: AttentionPlan = make_plan(pack.layouts, device)
    else:
        plan = attention.plan(decoder, pack.layouts, device)
    output = decoder(
        input_ids=pack.ids[None].to(device),
        position_ids=pack.positions[None].to(device),
        attention_plan=plan,
        use_cache=False,
    )
    states: Tensor = output.last_hidden_state[0]
    return states


def _kl_from(
    hidden: Tensor,
    head: Head,
    against: Sequence[Tensor | None],
    counts: Sequence[int],
    *,
    temperature: float | Tensor,
    chunk_size: int,
) -> Tensor | None:
    """Compute the divergence at every token ``[N]``, 0 in reads without other states; ``None`` if none has any."""
    others = [other for other in against if other is not None]
    if not others:
        return None
    has = torch.tensor([other is not None for other in against]).repeat_interleave(torch.tensor(counts))
    where = has.nonzero()[:, 0].to(hidden.device)
    if isinstance(temperature, Tensor):
        temperature = temperature[where]
    kl = chunked_kl(hidden[where], torch.cat(others), head, temperature=temperature, chunk_size=chunk_size)
    return kl.new_zeros(len(hidden)).index_put((where,), kl)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _by_token(
    temperature: float | Sequence[float], lengths: Sequence[int], selected: Tensor, hidden: Tensor
) -> float | Tensor:
    """Spread the temperatures of reads over their selected tokens, ``[N]``; a number where all have the same."""
    by_read = [float(temperature)] * len(lengths) if isinstance(temperature, int | float) else list(temperature)
    for value in by_read:
        if not value > 0:
            raise ValueError(f"log-probabilities need a temperature above 0, got {value}")
    if len(set(by_read)) == 1:
        return by_read[0]
    spread = torch.tensor(by_read).repeat_interleave(torch.tensor(lengths))[selected]  # [N]
    return spread.to(hidden.device, _wide(hidden.dtype))


def _selection(pack: Pack, only: Sequence[Tensor] | None) -> Tensor:
    """Mask the read tokens of a pack that go through the head, ``[sum R]``."""
    lengths = [read.targets.shape[0] for read in pack.reads]
    if only is None:
        return torch.ones(sum(lengths), dtype=torch.bool)
    shapes = [tuple(mask.shape) for mask in only]
    if shapes != [(length,) for length in lengths]:
        raise ValueError(f"masks of shapes {shapes} were given for reads of {lengths} tokens; give one [R] per read")
    return torch.cat([mask.bool().cpu() for mask in only])


def decoder_and_head(model: nn.Module) -> tuple[nn.Module, Head]:
    """Split a model into the transformer without its head, and the head; adapters live inside both."""
    from peft import PeftModel
    from transformers import PreTrainedModel

    unwrapped = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(unwrapped, PreTrainedModel):
        raise ValueError(
            f"the policy must be a transformers model, with or without a PEFT adapter, not {type(unwrapped).__name__}"
        )
    base: Any = unwrapped
    config = base.config.get_text_config()
    output = base.get_output_embeddings()
    if output is None:
        raise ValueError(f"{type(base).__name__} has no language-model head; load a causal language model")
    cap = getattr(config, "final_logit_softcapping", None)
    # Cohere multiplies the logits, Granite divides them.
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    return base.get_decoder(), _OutputHead(output, scale, cap)


@dataclass(frozen=True, slots=True)
class _OutputHead:
    """Head of a model, for states of any type: norms in float32 give float32 states before a bfloat16 head.

    Attributes:
        module: The head.
        scale: Factor on the logits.
        cap: Bound of the logits, which a tanh brings about; ``None`` for none.
    """

    module: Any
    scale: float = 1.0
    cap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.module(hidden.to(self.module.weight.dtype))
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else (logits / self.cap).tanh() * self.cap
