"""PACTModule against plain computations: one sequence per forward, dense logits, formulas written out here."""

from dataclasses import replace

import pytest
import torch
from hand_made import FULL, LORA, fit_steps, gradients, hand_made_group, prepared
from plain_pact import RENDERER, Plain

from pact_lightning.objectives.pact import Coefficients
from pact_lightning.policy.packing import pack_blocks
from pact_lightning.traces.tokens import render_trace
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.types.trajectory import Component
from pact_lightning.update.layout import head_masks, lay_out
from pact_lightning.update.optimizer import OptimizerConfig

SHIFT = 0.02
NO_SFT = Coefficients(sft=0.0)
ONLY_SFT = Coefficients(kl=0.0, entropy=0.0)


def group_of(index=1, **changes):
    return hand_made_group(RENDERER, index, **changes)


def with_old_logps(module, group):
    """Prepares a phase whose old log-probabilities are so far off that every bound of the surrogate is met."""
    module.prepare_phase([group], optimizer_steps=2)
    generator = torch.Generator().manual_seed(2)
    for sample, old in enumerate(group.old_logps):
        old.add_(torch.randn(len(old), generator=generator), alpha=1.5)
        old[~group.policy_mask(sample)] = float("nan")  # never to be read
    return group


def assert_same(one, other, **tolerances):
    assert one.keys() == other.keys()
    largest = max(float(gradient.abs().max()) for gradient in other.values())
    assert largest > 1e-2, "there is a gradient to compare"
    # float32 sums round by the size of their terms: where gradients reach hundreds, zero is known to a thousandth.
    torch.testing.assert_close(one, other, **({"rtol": 1e-4, "atol": 1e-5 * max(1.0, largest)} | tolerances))


def largest_difference(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one.keys() & other.keys())


@pytest.mark.parametrize("policy", [FULL, LORA], ids=["full", "lora"])
def test_with_q_1_every_prompt_is_scored_by_the_clipped_surrogate_under_the_prompt_alone(policy):
    module = prepared(policy, SHIFT, anchor_probability=1.0)
    group = with_old_logps(module, group_of())
    assert group.anchored == "drawn"
    plain = Plain(module)
    expected = plain.gradient(plain.rollouts(group, plain.prompt(group)))
    assert_same(gradients(module, group), expected)
    logged = module.logged[0]
    assert logged["train/anchored"] == logged["anchor/drawn"] == 1.0
    assert min(logged["train/clip_low"], logged["train/clip_high"], logged["train/clip_dual"]) > 0
    assert logged["train/loss"] == pytest.approx(plain.rollouts(group, plain.prompt(group)).item(), abs=1e-5)


@pytest.mark.parametrize("policy", [FULL, LORA], ids=["full", "lora"])
def test_with_q_0_it_is_the_surrogate_under_the_trace_plus_beta_times_sft_under_the_prompt(policy):
    module = prepared(policy, SHIFT, anchor_probability=0.0, level=3, tool_call_scale=0.6)
    group = with_old_logps(module, group_of())
    assert group.anchored is None
    plain = Plain(module)
    loss = plain.rollouts(group, plain.privileged(group)) + 0.1 * plain.sft(group)
    assert_same(gradients(module, group), plain.gradient(loss))
    assert module.logged[0]["train/sft_loss"] == pytest.approx(plain.sft(group).item(), abs=1e-4)


@pytest.mark.parametrize("template", ["user_block", "system_block"])
def test_a_quoted_trace_conditions_the_rollouts_and_is_learned_as_turns(template):
    module = prepared(FULL, SHIFT, anchor_probability=0.0, trace_template=template)
    group = group_of()
    plain = Plain(module)
    context = module.contexts.privileged(group.task, group.task.trace, 4, 0).ids
    loss = plain.rollouts(group, context) + 0.1 * plain.sft(group)
    assert_same(gradients(module, group), plain.gradient(loss))


def test_with_beta_0_nothing_is_learned_from_the_trace():
    module = prepared(FULL, SHIFT, anchor_probability=0.0, coefficients=NO_SFT)
    group = group_of()
    plain = Plain(module)
    expected = plain.gradient(plain.rollouts(group, plain.privileged(group)))
    assert_same(gradients(module, group), expected)
    still = prepared(FULL, anchor_probability=0.0, coefficients=NO_SFT)
    assert gradients(still, group_of(zero_variance=True)) == {}, "no term is left"


def test_an_anchored_prompt_learns_nothing_from_its_trace():
    groups = [group_of(anchored="drawn"), group_of(anchored="drawn")]
    groups[1].task = replace(groups[1].task, trace=group_of(2).task.trace)
    one, other = (gradients(prepared(FULL, SHIFT), group) for group in groups)
    assert_same(one, other, rtol=0, atol=0)


def test_a_prompt_without_a_trace_is_anchored():
    group = group_of()
    group.task = replace(group.task, trace=None)
    module = prepared(FULL, SHIFT, anchor_probability=0.0)
    module.prepare_phase([group], optimizer_steps=1)
    assert group.anchored == "no_trace"
    assert_same(gradients(module, group), gradients(prepared(FULL, SHIFT), group_of(anchored="drawn")))


def test_a_trace_that_does_not_fit_sends_its_prompt_to_the_anchor():
    group = group_of()
    trace = render_trace(RENDERER, group.task.trace)
    room = len(group.trajectories[0].prompt_ids) + max(len(t.ids()) for t in group.trajectories)
    module = prepared(FULL, SHIFT, anchor_probability=0.0, max_context_tokens=room + len(trace.ids) // 4)
    module.prepare_phase([group], optimizer_steps=1)
    assert group.anchored == "overlong"
    assert_same(gradients(module, group), gradients(prepared(FULL, SHIFT), group_of(anchored="drawn")))
    assert module.logged[0]["anchor/overlong"] == 1.0


def test_by_default_a_context_may_take_the_positions_of_the_policy():
    assert PACTModule(policy=FULL, max_tokens_per_forward=1).contexts.max_tokens == 4096
    with pytest.raises(ValueError, match=r"model\.max_context_tokens counts tokens, not 0"):
        PACTModule(policy=FULL, max_context_tokens=0)


def test_the_anchor_is_drawn_once_per_visit_with_probability_q():
    group = group_of(3)

    def draws(seed):
        visits = [replace(group, position=position) for position in range(80)]
        PACTModule(policy=FULL, anchor_probability=0.4, seed=seed).prepare_phase(visits, optimizer_steps=1)
        return [visit.anchored for visit in visits]

    first = draws(3)
    assert 0.25 < first.count("drawn") / len(first) < 0.55
    assert set(first) == {None, "drawn"}
    assert draws(3) == first
    assert draws(4) != first


@pytest.mark.parametrize("ratio_context", ["trace", "prompt"])
@pytest.mark.parametrize("anchors", [0.0, 1.0])
def test_the_ratio_of_a_phases_first_step_is_1_and_of_its_second_is_not(anchors, ratio_context):
    optimizer = OptimizerConfig(learning_rate=1e-3)
    module = prepared(LORA, SHIFT, anchor_probability=anchors, ratio_context=ratio_context, optimizer=optimizer)
    groups = [group_of(1), group_of(3)]
    module.prepare_phase(groups, optimizer_steps=2)
    plain = Plain(module)
    under_trace = anchors == 0.0 and ratio_context == "trace"
    for group in groups:
        context = plain.privileged(group) if under_trace else plain.prompt(group)
        for sample, trajectory in enumerate(group.trajectories):
            ids, mask = trajectory.ids(), group.policy_mask(sample)
            dense = plain.distribution(context, ids)[torch.arange(len(ids)), torch.from_numpy(ids)]
            torch.testing.assert_close(group.old_logps[sample][mask], dense[mask].detach(), rtol=0, atol=1e-4)
    fit_steps(module, groups, groups)
    first, second = (logged for logged in module.logged if "train/ratio_mean" in logged)
    assert first["train/ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    assert first["train/ratio_max"] == pytest.approx(1.0, abs=1e-4)
    assert first["train/clip_low"] == first["train/clip_high"] == first["train/clip_dual"] == 0.0
    assert second["train/ratio_max"] > 1.001


def test_a_phase_of_one_step_needs_no_old_logps_and_has_the_same_gradient_as_with_them():
    one, other = group_of(), group_of()
    modules = [prepared(FULL, SHIFT, anchor_probability=0.0) for _ in range(2)]
    modules[0].prepare_phase([one], optimizer_steps=1)
    modules[1].prepare_phase([other], optimizer_steps=2)
    assert one.old_logps is None
    assert other.old_logps is not None
    assert_same(gradients(modules[0], one), gradients(modules[1], other))


def test_observations_are_context_for_what_follows_and_are_not_scored_themselves():
    module = prepared(FULL, SHIFT, anchor_probability=0.0)
    group, changed = group_of(), group_of()
    segments = changed.trajectories[0].segments
    at = next(n for n, segment in enumerate(segments) if segment.component is Component.OBSERVATION)
    ids = list(segments[at].ids)
    middle = len(ids) // 2
    ids[middle] += 1
    segments[at] = replace(segments[at], ids=tuple(ids))
    for one in (group, changed):
        module.prepare_phase([one], optimizer_steps=2)
    before, after = group.old_logps[0], changed.old_logps[0]
    start = sum(len(segment.ids) for segment in segments[:at])
    observed = torch.from_numpy(group.trajectories[0].components()) == Component.OBSERVATION
    assert observed[start]
    assert not before[observed].any(), "observations have no log-probability at all"
    torch.testing.assert_close(before[:start], after[:start], rtol=0, atol=0)
    moved = (before - after).abs()[start:][~observed[start:]]
    assert float(moved.max()) > 1e-4
    # Whatever stands as their old log-probability or advantage, it leaves no trace in the gradient.
    group.old_logps[0][observed] = float("nan")
    assert_same(gradients(module, group), gradients(prepared(FULL, SHIFT, anchor_probability=0.0), group_of()))


def test_lambda_a_cancels_at_level_0_under_weight_sum_and_acts_under_token_count():
    """A group of zero variance leaves the SFT term alone."""

    def gradient(scale, normalizer):
        settings = {"level": 0, "tool_call_scale": scale, "sft_normalizer": normalizer}
        module = prepared(FULL, SHIFT, anchor_probability=0.0, coefficients=ONLY_SFT, **settings)
        return gradients(module, group_of(zero_variance=True))

    assert_same(gradient(0.8, "weight_sum"), gradient(0.2, "weight_sum"))
    strong, weak = gradient(0.8, "token_count"), gradient(0.2, "token_count")
    assert_same(strong, {name: 4.0 * value for name, value in weak.items()})


def test_the_supervision_in_force_decides_and_can_leave_no_token():
    module = prepared(FULL, anchor_probability=0.0, level=0, tool_call_scale=0.0, coefficients=ONLY_SFT)
    recorded = gradients(module, group_of(zero_variance=True))
    assert not any(gradient.any() for gradient in recorded.values())
    assert module.logged[0]["train/sft_skipped"] == 1.0


def mixed_groups():
    """Trace prompts, anchored ones, ones without variance and ones of both kinds."""
    kinds = [{}, {"anchored": "drawn"}, {"zero_variance": True}, {"anchored": "drawn", "zero_variance": True}]
    return [group_of(index, **kinds[index % 4]) for index in (1, 2, 3, 4, 5, 8, 9, 12)]


@pytest.fixture(scope="module")
def eight_prompts():
    """Gradient and logged values of a step on eight prompts in one forward."""
    module = prepared(FULL, SHIFT, anchor_probability=0.0, max_tokens_per_forward=100_000)
    return gradients(module, *mixed_groups()), module.logged[0]


def tight_limit(groups):
    builder = PACTModule(policy=FULL).contexts
    return max(
        len(builder.privileged(group.task, group.task.trace, 4, 0).ids)
        + max(len(trajectory.ids()) for trajectory in group.trajectories)
        for group in groups
    )


@pytest.mark.parametrize(
    ("packing", "limit"), [("shared_prefix", None), ("shared_prefix", 1), ("rows", 100_000), ("rows", None)]
)
def test_packing_changes_neither_loss_nor_gradient(eight_prompts, packing, limit):
    """Nor does a limit of a forward that no prompt, context and rollout fit: nothing is shortened, nothing anchored."""
    groups = mixed_groups()
    limit = limit or tight_limit(groups)
    module = prepared(FULL, SHIFT, anchor_probability=0.0, packing=packing, max_tokens_per_forward=limit)
    plans = [module._job(group) for group in groups]
    packs = pack_blocks(lay_out(plans).blocks, limit, packing)
    assert len(packs) == 1 if limit == 100_000 else len(packs) > 4
    expected, logged = eight_prompts
    assert_same(gradients(module, *groups), expected)
    assert module.logged[0] == pytest.approx(logged, abs=2e-4, rel=1e-4)


def test_the_longest_forward_is_the_first_of_a_step_and_of_the_pass_for_old_log_probabilities():
    """What memory does not suffice for fails at once; the gradient is the same, as above."""
    groups, lengths = mixed_groups(), []
    module = prepared(FULL, SHIFT, anchor_probability=0.0, max_tokens_per_forward=tight_limit(groups))
    gradients(module, groups[0])  # the first forward of a run is that of a check
    embeddings = module.model.get_input_embeddings()
    embeddings.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[-1]))
    module.prepare_phase(groups, optimizer_steps=2)
    passed = len(lengths)
    module.accumulate_gradients(groups, torch.Tensor.backward)
    for found in (lengths[:passed], lengths[passed:]):
        assert found == sorted(found, reverse=True)
        assert len(set(found)) > 3


def test_the_references_head_runs_at_policy_tokens_only():
    module = prepared(FULL, SHIFT, anchor_probability=0.0)
    jobs = [module._job(group_of(2))]
    blocks = lay_out(jobs)
    (pack,) = pack_blocks(blocks.blocks, 100_000)
    for with_traces in (True, False):
        masks = head_masks(jobs, blocks, pack, with_traces=with_traces)
        marked = {
            blocks.scored(read).sample is None: int(mask.sum()) for read, mask in zip(pack.reads, masks, strict=True)
        }
        assert marked[False] > 0
        assert (marked[True] > 0) == with_traces


def test_a_prompt_whose_rollouts_take_several_forwards_has_the_same_gradient():
    group = group_of(2)
    limit = tight_limit([group])
    module = prepared(FULL, SHIFT, anchor_probability=0.0, max_tokens_per_forward=limit)
    assert len(pack_blocks(lay_out([module._job(group)]).blocks, limit)) == 2
    whole = prepared(FULL, SHIFT, anchor_probability=0.0)
    assert_same(gradients(module, group), gradients(whole, group_of(2)))
    assert module.logged[0]["train/loss"] == pytest.approx(whole.logged[0]["train/loss"], abs=1e-5)


@pytest.mark.parametrize("packing", ["shared_prefix", "rows"])
def test_step_figures_are_those_of_one_unpacked_forward(packing):
    """Shares are of the step's tokens, the largest ratio is the largest, however the rollouts are spread over packs."""
    groups = [group_of(index) for index in (1, 2, 4)]
    module = prepared(FULL, SHIFT, anchor_probability=0.0, packing=packing, max_tokens_per_forward=tight_limit(groups))
    module.prepare_phase(groups, optimizer_steps=2)
    ratios, signs = [], []
    generator = torch.Generator().manual_seed(3)
    for number, group in enumerate(groups):
        for sample, old in enumerate(group.old_logps):
            mask = group.policy_mask(sample)
            off = torch.randn(len(old), generator=generator) * 0.5
            off[mask.nonzero()[0]] = torch.tensor(1.0 + number + sample).log1p()  # the largest ratio: 2, 3, ..., 6
            old.sub_(off)
            ratios.append(off[mask].exp())
            signs.append(group.token_advantages(sample)[mask].sign())
    ratio, sign = torch.cat(ratios), torch.cat(signs)
    assert len(pack_blocks(lay_out([module._job(group) for group in groups]).blocks, tight_limit(groups), packing)) > 3
    gradients(module, *groups)
    logged = module.logged[0]
    assert logged["train/ratio_max"] == pytest.approx(max(6.0, float(ratio.max())), rel=1e-3)
    for name, stopped in {
        "clip_low": (ratio < 0.8) & (sign < 0),
        "clip_high": (ratio > 1.2) & (sign > 0),
        "clip_dual": (ratio > 3.0) & (sign < 0),
    }.items():
        assert stopped.any()
        assert logged[f"train/{name}"] == pytest.approx(float(stopped.float().mean()), abs=1e-6), name
    assert logged["train/ratio_mean"] == pytest.approx(float(ratio.mean()), rel=1e-4)
    assert logged["train/approx_kl"] == pytest.approx(float((ratio - 1 - ratio.log()).mean()), rel=1e-3)


def test_the_gradient_of_a_step_is_the_mean_over_its_prompts(eight_prompts):
    module = prepared(FULL, SHIFT, anchor_probability=0.0)
    singles = fit_steps(module, *([group] for group in mixed_groups()))
    assert len(singles) == 8
    mean = {name: sum(s[name] for s in singles if s) / 8 for name in eight_prompts[0]}
    assert_same(mean, eight_prompts[0])


def test_ratio_context_prompt_mixes_the_surrogate_under_the_prompt_with_sft():
    module = prepared(FULL, SHIFT, anchor_probability=0.0, ratio_context="prompt")
    group = with_old_logps(module, group_of())
    plain = Plain(module)
    loss = plain.rollouts(group, plain.prompt(group)) + 0.1 * plain.sft(group)
    assert_same(gradients(module, group), plain.gradient(loss))


def test_ratio_context_cross_divides_what_the_trace_makes_likely_by_what_the_prompt_did():
    module = prepared(FULL, SHIFT, anchor_probability=0.0, ratio_context="cross")
    group = group_of()
    module.prepare_phase([group], optimizer_steps=1)
    plain = Plain(module)
    for sample, trajectory in enumerate(group.trajectories):
        ids, mask = trajectory.ids(), group.policy_mask(sample)
        under_prompt = plain.distribution(plain.prompt(group), ids)[torch.arange(len(ids)), torch.from_numpy(ids)]
        torch.testing.assert_close(group.old_logps[sample][mask], under_prompt[mask].detach(), rtol=0, atol=1e-4)
    loss = plain.rollouts(group, plain.privileged(group)) + 0.1 * plain.sft(group)
    assert_same(gradients(module, group), plain.gradient(loss))
    assert module.logged[0]["train/ratio_max"] > 1.01


def test_zero_variance_drops_the_rollout_terms_and_keeps_sft():
    module = prepared(FULL, SHIFT, anchor_probability=0.0)
    plain = Plain(module)
    group = group_of(zero_variance=True)
    assert_same(gradients(module, group), plain.gradient(0.1 * plain.sft(group)))
    anchored = prepared(FULL, SHIFT)
    assert gradients(anchored, group_of(zero_variance=True, anchored="drawn")) == {}
    assert module.logged[0]["train/zero_variance"] == 1.0


def test_zero_variance_keep_scores_the_group_as_the_paper_does():
    module = prepared(
        FULL, SHIFT, anchor_probability=0.0, zero_variance="keep", coefficients=Coefficients(0.1, 0.5, 0.1)
    )
    group = group_of(zero_variance=True, advantages=[[0.0] * 3, [0.0] * 2, [0.0]])
    plain = Plain(module)
    loss = plain.rollouts(group, plain.privileged(group)) + 0.1 * plain.sft(group)
    assert_same(gradients(module, group), plain.gradient(loss))


def test_training_logps_share_the_sampling_temperature():
    module = prepared(FULL, SHIFT, anchor_probability=1.0)
    group = with_old_logps(module, group_of(temperature=0.7, anchored="drawn"))
    warm, cold = Plain(module, temperature=0.7), Plain(module)
    recorded = gradients(module, group)
    expected, other = (plain.gradient(plain.rollouts(group, plain.prompt(group))) for plain in (warm, cold))
    assert_same(recorded, expected)
    assert largest_difference(expected, other) > 1e-3


@pytest.mark.parametrize("template", ["turns", "user_block"])
def test_the_trace_is_learned_at_temperature_1_in_the_forward_that_scores_rollouts_at_their_own(template):
    settings = {"anchor_probability": 0.0, "trace_template": template}
    plain = Plain(prepared(FULL, SHIFT, **settings), temperature=0.7)
    groups = [group_of(temperature=0.7, zero_variance=True), group_of(temperature=0.7)]
    alone, both = (gradients(prepared(FULL, SHIFT, **settings), group) for group in groups)
    assert_same(alone, plain.gradient(0.1 * plain.sft(groups[0])))
    context = PACTModule(policy=FULL, **settings).contexts.privileged(groups[1].task, groups[1].task.trace, 4, 0).ids
    assert_same(both, plain.gradient(plain.rollouts(groups[1], context) + 0.1 * plain.sft(groups[1])))


@pytest.mark.parametrize("policy", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize(("kl", "forwards"), [(0.0, 1), (0.5, 2)])
def test_the_reference_runs_only_where_there_is_a_kl_term(policy, kl, forwards):
    module = prepared(policy, SHIFT, anchor_probability=0.0, coefficients=Coefficients(kl=kl))
    models = [module.model, *([module.reference_copy] if module.reference_copy else [])]
    assert len(models) == 1 + (policy is FULL and kl > 0)
    gradients(module, group_of())  # the first forward of a run brings the check of its attention with it
    module.recorded.clear()
    counted = []
    for model in models:
        decoder = (model.get_base_model() if policy is LORA else model).get_decoder()
        decoder.register_forward_hook(lambda *_: counted.append(torch.is_grad_enabled()))
    gradients(module, group_of())
    assert sorted(counted) == [False] * (forwards - 1) + [True]


def test_the_reference_of_full_weights_is_a_frozen_copy_that_is_neither_trained_nor_saved():
    module = prepared(FULL, anchor_probability=0.0, optimizer=OptimizerConfig(learning_rate=1e-2))
    start = {name: weight.clone() for name, weight in module.model.named_parameters()}
    gradients(module, group_of())
    for name, weight in module.reference_copy.named_parameters():
        torch.testing.assert_close(weight, start[name], rtol=0, atol=0)
        assert not weight.requires_grad
    assert largest_difference(start, dict(module.model.named_parameters())) > 1e-3
    assert module.state_dict().keys() == start.keys()
    assert sum(1 for _ in module.parameters()) == len(start)


def test_gradients_are_clipped_to_the_modules_own_bound():
    optimizer = OptimizerConfig(learning_rate=1e-3, gradient_clip=0.5)
    module = prepared(FULL, SHIFT, anchor_probability=0.0, optimizer=optimizer)
    seen = []
    step = torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        grads = [weight.grad for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        seen.append(float(torch.stack([grad.norm() for grad in grads]).norm()))
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", watched)
        gradients(module, group_of())
    assert seen == [pytest.approx(0.5, rel=1e-4)]
    assert module.logged[0]["train/gradient_norm"] > 0.6


def test_a_probability_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"anchor_probability must be between 0 and 1, not 1.4"):
        PACTModule(policy=FULL, anchor_probability=1.4)
