"""``pact-lightning plan`` where a vLLM server or an engine beside the policy samples."""

from dataclasses import replace

import pytest
from cli_recipe import SERVER, saved

from pact_lightning.cli.main import main
from pact_lightning.cli.plan_recipe import read_recipe
from pact_lightning.plan.lengths import Lengths
from pact_lightning.plan.memory import NF4_BYTES
from pact_lightning.plan.run_plan import make_plan
from pact_lightning.policy.attention.plan import AttentionShape
from pact_lightning.policy.flops import FlopCount
from pact_lightning.policy.loading import policy_skeleton

GIVEN = ["--tflops", "1", "--bandwidth", "10"]
LENGTHS = Lengths(prompt=100, trace=60, trajectory=40, sampled_share=0.5)


def test_with_a_sampler_of_its_own_rollouts_take_nothing_here_and_are_scored_by_the_prompt_alone(tmp_path, capsys):
    recipe = read_recipe(["-c", saved(tmp_path, SERVER)])
    plan = make_plan(recipe, policy_skeleton(recipe.policy), LENGTHS)
    assert plan.memory.in_rollouts == plan.memory.standing.always + plan.memory.standing.dequantised
    (alone,) = [one for one in plan.passes if one.name == "old, prompt only"]
    privileged = recipe.privileged_prompts * plan.recipe.steps
    assert alone.tokens == privileged * (100 + recipe.rollouts_per_prompt * 40)
    main(["plan", "-c", saved(tmp_path, SERVER), "--memory", "1GB", *GIVEN])
    told = " ".join(capsys.readouterr().out.split())
    for sentence in (
        "plan does not estimate its memory",
        "as if the policy sampled itself",
        "limits.rows: unknown: it depends on the sampler",
    ):
        assert sentence in told
    assert "keys and values" not in told


@pytest.mark.parametrize(
    ("changes", "corrected"),
    [
        ({"importance_cap": 2.0}, True),
        ({"importance_cap": None, **{"sampler": SERVER["model.init_args.sampler"]}}, False),
        ({"importance_cap": 2.0, "ratio_context": "prompt"}, False),
        ({"importance_cap": 2.0, "ratio_context": "cross"}, False),
        ({}, False),
    ],
)
def test_the_correction_needs_a_forward_where_the_ratio_is_taken_under_the_trace(tmp_path, changes, corrected):
    given = {f"model.init_args.{name}": value for name, value in changes.items()}
    assert read_recipe(["-c", saved(tmp_path, given)]).with_correction == corrected


def with_engine(folder, **arguments):
    """A QLoRA whose rollouts come from a vLLM engine beside it, for a card."""
    return saved(
        folder,
        {
            "model.init_args.sampler": {"class_path": "pact_lightning.VLLMEngine", "init_args": arguments},
            "model.init_args.policy": {"adapter": "qlora", "lora_r": 4, "dtype": "bfloat16"},
            "trainer.accelerator": "gpu",
        },
    )


def test_a_vllm_engine_beside_the_policy_is_counted(tmp_path):
    recipe = read_recipe(["-c", with_engine(tmp_path, gpu_memory_utilization=0.5)])
    skeleton = policy_skeleton(recipe.policy)
    plan = make_plan(recipe, skeleton, LENGTHS, card=10**9)
    engine, standing = plan.memory.engine, plan.memory.standing
    shape = AttentionShape.of(skeleton)
    token = 2 * shape.layers * shape.kv_heads * shape.head_dim * 2  # bytes, in bfloat16
    assert engine.row == (100 + 40) * token
    # vLLM keeps a float32 per 64 weights where the trainer's scales are quantised themselves.
    scales = FlopCount.of(skeleton).base * (0.5 + 4 / 64 - NF4_BYTES)
    adapter = standing.adapter // 2  # float32 in the trainer
    assert engine.weights == pytest.approx(standing.weights + scales + adapter, rel=1e-3)
    assert plan.memory.in_rollouts == standing.always + standing.dequantised + 5 * 10**8, "its share, used or not"
    alone = read_recipe(["-c", with_engine(tmp_path), "--model.init_args.sampler", "null"])
    without = make_plan(replace(alone, with_correction=recipe.with_correction), skeleton, LENGTHS)
    assert plan.memory.in_update == without.memory.in_update, "asleep"

    awake = read_recipe(["-c", with_engine(tmp_path, gpu_memory_utilization=0.5, sleep_level=0)])
    assert make_plan(awake, skeleton, LENGTHS, card=10**9).memory.in_update == plan.memory.in_update + 5 * 10**8
    sixteen = read_recipe(["-c", with_engine(tmp_path, quantize_base=False)])
    unquantised = make_plan(sixteen, skeleton, LENGTHS).memory.engine
    assert unquantised.weights == 2 * sum(weight.numel() for weight in skeleton.parameters())
    assert unquantised.awake == unquantised.weights + 4 * unquantised.row, "without a card, what all rows need"


def test_the_plan_tells_what_an_engine_takes_and_how_many_rollouts_its_share_holds(tmp_path, capsys):
    main(["plan", "-c", with_engine(tmp_path), "--memory", "1GB", *GIVEN])
    told = " ".join(capsys.readouterr().out.split())
    for sentence in (
        "weights in vLLM",
        "keys and values in vLLM, the rest of its share",
        "vLLM takes 40% of the card (gpu_memory_utilization); in an update it sleeps",
        "limits.rows: any value; vLLM's cache holds at most 4 of 4 rollouts of these lengths at once",
    ):
        assert sentence in told
    main(["plan", "-c", with_engine(tmp_path, gpu_memory_utilization=0.001), "--memory", "1GB", *GIVEN])
    assert "does not hold its weights and one rollout" in " ".join(capsys.readouterr().out.split())
