"""``pact-lightning plan`` of objectives that score rollouts in a second context."""

import pytest
from cli_recipe import shallow

from pact_lightning.cli.plan_recipe import read_recipe
from pact_lightning.plan.lengths import Lengths
from pact_lightning.plan.run_plan import make_plan
from pact_lightning.policy.loading import policy_skeleton


def planned(folder, objective, **changes):
    """Passes of a plan by name, of an objective by its class and arguments, with traces of 80 tokens."""
    name, arguments = objective
    given = {"model.init_args.objective": {"class_path": f"pact_lightning.{name}", "init_args": arguments}}
    recipe = read_recipe(["-c", shallow(folder, given | changes)])
    plan = make_plan(recipe, policy_skeleton(recipe.policy), Lengths(100, 80, 40))
    return plan, {one.name: one for one in plan.passes}


PROMPT_ONLY = {"model.init_args.ratio_context": "prompt", "model.init_args.coefficients": {"sft": 0.0}}


@pytest.mark.parametrize("name", ["RLSD", "TurnSight", "OPSD"])
def test_an_objective_that_compares_contexts_takes_one_more_forward_with_the_trace(tmp_path, name):
    plan, passes = planned(tmp_path, (name, {}), **PROMPT_ONLY)
    assert passes["forward"].tokens == 2 * (100 + 2 * 40)  # two steps of a prompt with two rollouts
    assert passes["other context"].tokens == 2 * (100 + 80 + 2 * 40)
    assert passes["other context"].flops > passes["forward"].flops
    assert ("divergence" in passes) == (name == "OPSD")
    if name == "OPSD":
        assert passes["divergence"].tokens == 2 * 2 * 40
        plain, _ = planned(tmp_path, ("RLSD", {}), **PROMPT_ONLY)
        assert plan.memory.update.saved > plain.memory.update.saved + 2 * 40 * plan_width(plan) * 4


def plan_width(plan):
    return policy_skeleton(plan.recipe.policy).get_input_embeddings().weight.shape[1]


@pytest.mark.parametrize(("alpha", "contexts"), [(0.5, 2), (1.0, 1), (0.0, 1)])
def test_pi_distill_scores_the_teachers_rollouts_in_its_contexts_and_samples_with_the_trace(tmp_path, alpha, contexts):
    changes = {"data.init_args.off_spec_share": 1.0, "model.init_args.trace_template": "system_block"}
    changes |= {"model.init_args.anchor_probability": 1.0, "model.init_args.coefficients": {"sft": 0.0}}
    _, passes = planned(tmp_path, ("PiDistill", {"alpha": alpha}), **changes)
    teacher, student = 100 + 80 + 2 * 40, 100 + 2 * 40
    assert passes["forward"].tokens == 2 * (teacher * (alpha > 0) + student * (alpha < 1))
    assert passes["other context"].tokens == 2 * (student * (alpha > 0) + teacher * (alpha < 1))
    assert passes["old"].tokens == 2 * teacher
    assert passes["prefill"].tokens >= 2 * (100 + 80)
