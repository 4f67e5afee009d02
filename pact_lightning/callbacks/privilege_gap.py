"""Privilege gap: how much the expert trace changes what the policy gives its own rollouts (METHOD section 9)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pact_lightning.credit.group import Group
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.policy.divergence import chunked_kl
from pact_lightning.policy.logprobs import LogProbs, decoder_and_head
from pact_lightning.policy.packing import PREFIX, Block, pack_blocks
from pact_lightning.policy.sharding import score_pack
from pact_lightning.rollout.openai_format import TOKEN_FIGURES
from pact_lightning.types.trajectory import POLICY_COMPONENTS, Component, Trajectory
from pact_lightning.utils.files import write_json_lines
from pact_lightning.utils.processes import rank_suffix, run_folder, sum_over_processes


class PrivilegeGap(pl.Callback):
    """Callback that scores some prompts' rollouts under ``x`` and under ``c^h``, and logs how they differ [D].

    It costs two forwards without gradient for each measured prompt: one under ``x``, with the rollouts and the trace
    behind it, one under ``c^h``. With ``exact`` the head runs four times more over the rollouts' tokens, whose hidden
    states in both contexts are kept meanwhile. Training itself is the same with and without it. It looks at the first
    prompts of a phase's first optimiser step that have a trace, so by the weights that sampled the rollouts.

    With ``D = log pi(tau | c^h) - log pi(tau | x)`` of each policy token, ``metrics.csv`` gets, as ``privilege/...``:

    ``gap``, ``gap_{component}``, ``gap_turn_{t}``: mean of ``D`` in nats, of all tokens, by component and by turn.
    ``kl``: ``KL(pi(. | c^h) || pi(. | x))`` per token, estimated from the tokens sampled under ``x`` by
    ``r log r - r + 1`` with ``r = exp(D)``; ``kl_reverse``: ``KL(pi(. | x) || pi(. | c^h))``, by ``r - 1 - log r``.
    ``kl_exact``, ``kl_reverse_exact``: with ``exact``, the same two over the whole vocabulary at each sampled token.
    ``entropy_prompt``, ``entropy_trace``: entropy in nats per token under either context.
    ``trace_logp``: ``log pi(h* | x)``, ``rollout_logp_trace``: ``log pi(tau | x, h*)``, ``rollout_logp_prompt``:
    ``log pi(tau | x)``: sums over the policy's tokens, mean over traces or rollouts.
    ``share/{token}``, ``p_prompt/{token}``, ``p_trace/{token}``: of each control token its share of the sampled tokens,
    which estimates its mean probability, and its mean probability where it was sampled.

    Args:
        every_n_phases: Phases from one measurement to the next.
        prompts: Most prompts of a measurement; no more than an optimiser step has.
        tokens: Write each token's id, text, component, turn and log-probabilities to
            ``trajectories/privilege-NNNN.jsonl`` too; `pact-lightning report` shows them.
        exact: Compute both divergences over the whole vocabulary too.

    Raises:
        ValueError: A count is below 1.
    """

    metric_names = frozenset(
        f"privilege/{name}"
        for name in (
            *("gap", "kl", "kl_reverse", "entropy_prompt", "entropy_trace"),
            *("trace_logp", "rollout_logp_trace", "rollout_logp_prompt"),
            *(f"gap_{component.name.lower()}" for component in sorted(POLICY_COMPONENTS)),
        )
    )
    """Those of every run; turns and control tokens depend on what is sampled."""

    def __init__(self, every_n_phases: int = 1, prompts: int = 4, tokens: bool = False, *, exact: bool = False) -> None:
        if every_n_phases < 1 or prompts < 1:
            raise ValueError("PrivilegeGap counts phases and prompts; set every_n_phases and prompts to at least 1")
        self.every_n_phases = every_n_phases
        self.prompts = prompts
        self.tokens = tokens
        self.exact = exact
        if exact:
            self.metric_names = self.metric_names | {"privilege/kl_exact", "privilege/kl_reverse_exact"}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a module without privileged contexts.

        Raises:
            ValueError: There is nothing to measure.
        """
        del trainer
        if stage == "fit" and not hasattr(pl_module, "contexts"):
            raise ValueError(
                f"PrivilegeGap compares prompt and privileged context, and {type(pl_module).__name__} has no such "
                "context; leave the callback out, or train by PACTModule"
            )

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: list[Group], batch_idx: int) -> None:
        """Measure at the first step of a phase that is due.

        Raises:
            ValueError: The policy is sharded, so that processes cannot run forwards of their own.
        """
        if batch_idx or trainer.current_epoch % self.every_n_phases:
            return
        if pl_module.device_mesh is not None:
            raise ValueError("PrivilegeGap needs the whole policy in each process; leave it out with a sharded one")
        sums: dict[str, float] = defaultdict(float)
        records: list[dict[str, Any]] = []
        groups = [group for group in batch if group.trajectories and group.task.trace is not None]
        was_training = pl_module.model.training
        pl_module.model.eval()
        for group in groups[: self.prompts]:
            records += _measure(pl_module, group, sums, exact=self.exact)
        pl_module.model.train(was_training)
        found = sum_over_processes(trainer, sums)
        figures = figures_of(found)
        if figures:
            pl_module.log_dict(figures, on_step=False, on_epoch=True, batch_size=1)
        if self.tokens:
            name = f"{TOKEN_FIGURES}{trainer.current_epoch:04d}{rank_suffix(trainer)}.jsonl"
            write_json_lines(run_folder(trainer) / "trajectories" / name, records)


def figures_of(sums: dict[str, float]) -> dict[str, float]:
    """Return means by metric name from sums, whose counts are named ``{name}#``."""
    return {
        f"privilege/{name}": value / sums[f"{name}#"]
        for name, value in sums.items()
        if not name.endswith("#") and sums[f"{name}#"]
    }


@torch.no_grad()
def _measure(module: Any, group: Group, sums: dict[str, float], *, exact: bool) -> list[dict[str, Any]]:
    """Add a prompt's sums, and return a record of each of its rollouts."""
    rows = [trajectory.ids() for trajectory in group.trajectories]
    assert group.task.trace is not None
    longest = max(len(row) for row in rows)
    context = module.contexts.privileged(group.task, group.task.trace, module.supervision.level, longest)
    if context is None:
        return []
    policy = [int(component) for component in sorted(POLICY_COMPONENTS)]
    of_trace = torch.from_numpy(np.isin(context.target.components, policy))
    masks = [group.policy_mask(sample) for sample in range(len(rows))]
    temperatures = [group.temperature] * len(rows)
    *under_prompt, trace = _scores(
        module, context.prompt, [*rows, context.target.ids], [*masks, of_trace], [*temperatures, 1.0], keep_hidden=exact
    )
    under_trace = _scores(module, context.ids, rows, masks, temperatures, keep_hidden=exact)
    _add(sums, "trace_logp", [float(trace.logp.cpu()[of_trace].sum())])
    records = []
    sampled = {int(token) for row in rows for token in row if module.renderer.codec.is_control(int(token))}
    control = {token: str(module.tokenizer.convert_ids_to_tokens(token)) for token in sorted(sampled)}
    for trajectory, mask, prompt, privileged in zip(group.trajectories, masks, under_prompt, under_trace, strict=True):
        add_rollout(sums, trajectory, mask, prompt=prompt, privileged=privileged, control=control)
        if exact:
            _add_exact(sums, module, prompt, privileged, group.temperature)
        records.append(_record(trajectory, mask, module.renderer.codec, prompt=prompt, privileged=privileged))
    return records


def _add_exact(sums: dict[str, float], module: Any, prompt: LogProbs, privileged: LogProbs, temperature: float) -> None:
    """Add the divergences of a rollout's tokens over the whole vocabulary."""
    _, head = decoder_and_head(module.model)
    assert prompt.hidden is not None
    assert privileged.hidden is not None
    both = {"kl_exact": (privileged.hidden, prompt.hidden), "kl_reverse_exact": (prompt.hidden, privileged.hidden)}
    for name, (one, other) in both.items():
        found = chunked_kl(one, other, head, temperature=temperature, chunk_size=module.head_chunk)
        _add(sums, name, found.double().cpu().numpy())


def _scores(
    module: Any,
    prefix: npt.NDArray[np.int64],
    rows: Sequence[npt.NDArray[np.int64]],
    masks: Sequence[Tensor],
    temperatures: Sequence[float],
    *,
    keep_hidden: bool,
) -> list[LogProbs]:
    """Score rows behind a prefix, each ``[R]``."""
    found: dict[int, LogProbs] = {}
    for pack in pack_blocks([Block(prefix, list(rows))], module.max_tokens_per_forward, module.packing):
        reads = [read.branch for read in pack.reads]
        assert PREFIX not in reads
        scores = score_pack(
            module.model,
            pack,
            only=[masks[branch] for branch in reads],
            temperature=[temperatures[branch] for branch in reads],
            chunk_size=module.head_chunk,
            with_entropy=True,
            keep_hidden=keep_hidden,
            attention=module.attention,
        )
        found |= zip(reads, scores, strict=True)
    return [found[branch] for branch in range(len(rows))]


def add_rollout(
    sums: dict[str, float],
    trajectory: Trajectory,
    mask: Tensor,
    *,
    prompt: LogProbs,
    privileged: LogProbs,
    control: Mapping[int, str],
) -> None:
    """Add one rollout's figures to the sums of a measurement.

    Args:
        sums: Sums and counts by name.
        trajectory: The rollout, of ``R`` tokens.
        mask: Its policy tokens, ``[R]``.
        prompt: Log-probabilities and entropies under ``x``, ``[R]``.
        privileged: Those under ``c^h``, ``[R]``.
        control: Control tokens by id.
    """
    logp, other = (scores.logp.cpu()[mask].double().numpy() for scores in (prompt, privileged))  # [T]
    gap = other - logp
    components, turns = trajectory.components()[mask.numpy()], trajectory.turn_indices()[mask.numpy()]
    ids = trajectory.ids()[mask.numpy()]
    _add(sums, "gap", gap)
    for component in np.unique(components):
        _add(sums, f"gap_{Component(component).name.lower()}", gap[components == component])
    for turn in np.unique(turns):
        _add(sums, f"gap_turn_{turn}", gap[turns == turn])
    ratio = np.exp(gap)
    _add(sums, "kl", ratio * gap - ratio + 1)
    _add(sums, "kl_reverse", ratio - 1 - gap)
    for name, scores in (("entropy_prompt", prompt), ("entropy_trace", privileged)):
        assert scores.entropy is not None
        _add(sums, name, scores.entropy.cpu()[mask].double().numpy())
    _add(sums, "rollout_logp_prompt", [logp.sum()])
    _add(sums, "rollout_logp_trace", [other.sum()])
    for token in np.unique(ids):
        if int(token) in control:
            here, name = ids == token, control[int(token)]
            _add(sums, f"p_prompt/{name}", np.exp(logp[here]))
            _add(sums, f"p_trace/{name}", np.exp(other[here]))
            sums[f"share/{name}"] += float(here.sum())
    for name in [name for name in sums if name.startswith("share/") and not name.endswith("#")]:
        sums[f"{name}#"] = sums["gap#"]


def _add(sums: dict[str, float], name: str, values: Sequence[float] | npt.NDArray[np.float64]) -> None:
    sums[name] += float(np.sum(values))
    sums[f"{name}#"] += len(values)


def _record(
    trajectory: Trajectory, mask: Tensor, codec: TextCodec, *, prompt: LogProbs, privileged: LogProbs
) -> dict[str, Any]:
    kept = mask.numpy()
    return {
        "task_id": trajectory.task_id,
        "sample": trajectory.sample,
        "ids": trajectory.ids()[kept].tolist(),
        "texts": codec.texts(trajectory.ids()[kept].tolist()),
        "components": [Component(number).name.lower() for number in trajectory.components()[kept]],
        "turns": trajectory.turn_indices()[kept].tolist(),
        "logp_prompt": prompt.logp.cpu()[mask].tolist(),
        "logp_trace": privileged.logp.cpu()[mask].tolist(),
    }
