"""Sharding of a policy trained in full over processes by FSDP2, and its whole weights for rollouts."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from pact_lightning.policy.loading import Adapter
from pact_lightning.policy.logprobs import LogProbs, token_logprobs
from pact_lightning.policy.packing import Pack


def shard_policy(policy: Any, adapter: Adapter, mesh: DeviceMesh) -> "WholePolicy":
    """Shard the weights in place: each layer by itself, embeddings, last norm and head together.

    Args:
        policy: A transformers causal language model, all of it trained.
        adapter: What is trained.
        mesh: The processes, with the dimensions ``data_parallel`` and ``tensor_parallel`` of ModelParallelStrategy.

    Returns:
        The lender of the whole policy.

    Raises:
        ValueError: It is not trained in full, layers are to be split too, or the model has no list of layers.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    if adapter != "full":
        raise ValueError(
            f"ModelParallelStrategy shards a policy trained in full, and model.policy.adapter is '{adapter}'; set that "
            "to 'full', or use trainer.strategy 'ddp': there is little to shard in an adapter"
        )
    if mesh["tensor_parallel"].size() > 1:
        raise ValueError(
            f"ModelParallelStrategy has a tensor_parallel_size of {mesh['tensor_parallel'].size()}, but layers are not "
            f"split here; set tensor_parallel_size to 1 and data_parallel_size to {mesh.size()}"
        )
    layers = getattr(policy.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(
            f"{type(policy).__name__} has no list of layers to shard; train it under trainer.strategy 'ddp' instead"
        )
    whole = WholePolicy(policy)
    for module in (*layers, policy):
        fully_shard(module, mesh=mesh["data_parallel"])
    # Head and decoder run by themselves, not in the model's own forward, where FSDP's hooks are.
    policy.score_pack = MethodType(_score_tensors, policy)
    register_fsdp_forward_method(policy, "score_pack")
    return whole


def is_sharded(model: object) -> bool:
    """Return whether a policy's weights are spread over processes."""
    from torch.distributed.fsdp import FSDPModule  # takes a while to import, in a run on one process for nothing

    return isinstance(model, FSDPModule)


def score_pack(model: Any, pack: Pack, **settings: Any) -> list[LogProbs]:
    """Score a pack as :func:`~pact_lightning.policy.logprobs.token_logprobs` does, by a policy that may be sharded.

    With a sharded policy every process has to call this equally often.
    """
    if not is_sharded(model):
        return token_logprobs(model, pack, **settings)
    sharded: Any = model
    return [LogProbs(*tensors) for tensors in sharded.score_pack(pack, **settings)]


def _score_tensors(model: nn.Module, pack: Pack, **settings: Any) -> list[tuple[Tensor | None, ...]]:
    # FSDP hooks itself into the tensors that a forward returns, so they are bare ones and no views of one another.
    return [
        tuple(None if part is None else part.clone() for part in (score.logp, score.entropy, score.hidden, score.kl))
        for score in token_logprobs(model, pack, **settings)
    ]


class WholePolicy:
    """Second body for a policy's weights, empty unless it is lent.

    Rollouts of different processes take a different number of forwards, which a sharded policy cannot do: its forward
    waits for all processes. Here every process gets all weights for as long as the rollouts take [D].

    Args:
        policy: The policy, before it is sharded.
    """

    def __init__(self, policy: nn.Module) -> None:
        empty = {
            id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)
            for weight in policy.parameters()
        }
        self._empty = {name: empty[id(weight)] for name, weight in policy.named_parameters(remove_duplicate=False)}
        # deepcopy takes the empty weights from its memo instead of copying the real ones.
        self._body = deepcopy(policy, dict(empty)).eval()
        self._lent = False

    @contextmanager
    def lend(self, sharded: nn.Module) -> Iterator[nn.Module]:
        """Lend the policy with all its present weights.

        All processes have to enter together; within, each may enter again by itself.
        """
        if self._lent:
            yield self._body
            return
        whole: dict[int, Tensor] = {}
        state: dict[str, Tensor] = {}
        for name, weight in sharded.named_parameters(remove_duplicate=False):
            if id(weight) not in whole:
                whole[id(weight)] = _full(weight.detach())
            state[name] = whole[id(weight)]
        self._body.load_state_dict(state, strict=False, assign=True)
        self._body.to(next(iter(state.values())).device)
        del whole, state
        self._lent = True
        try:
            yield self._body
        finally:
            self._lent = False
            self._body.load_state_dict(self._empty, strict=False, assign=True)


def common_value(scalar: Tensor) -> float:
    """Return a scalar that may be spread over processes, as all of them see it."""
    return float(_full(scalar))


def _full(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    whole: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole
