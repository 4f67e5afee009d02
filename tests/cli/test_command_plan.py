"""``pact-lightning plan``: what it reads of a recipe, what it tells, and how it reckons."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from cli_recipe import SERVER, saved, shallow

from pact_lightning.cli.main import main
from pact_lightning.cli.plan import parse_memory
from pact_lightning.cli.plan_recipe import read_recipe
from pact_lightning.plan.duration import Speed, phase_seconds, probe_speed
from pact_lightning.plan.fitting import Largest, _largest, largest_fit
from pact_lightning.plan.lengths import Decoding, Lengths, Passes, StepShape, fullest, step_packs
from pact_lightning.plan.run_plan import make_plan, planned_packs
from pact_lightning.policy.loading import BUNDLED, PolicyConfig, load_policy, policy_skeleton
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.training.rollout_datamodule import RolloutDataModule

HOURS = re.compile(
    r"([\d,.]+) h at least, with rollouts of these lengths: ([\d,.]+) h of rollouts and ([\d,.]+) h of upd"
)
GIVEN = ["--tflops", "1", "--bandwidth", "10"]
LENGTHS = Lengths(prompt=100, trace=60, trajectory=40, sampled_share=0.5)


def step(**changes):
    settings = {"prompts": 4, "privileged": 2, "rollouts": 3, "max_tokens": 10_000, "packing": "shared_prefix"}
    return StepShape(**(settings | changes))


@pytest.mark.parametrize(
    ("changes", "tokens", "scored"),
    [
        ({}, 2 * (160 + 3 * 40) + 2 * (100 + 3 * 40), 2 * 60),
        ({"trace_layout": "branch"}, 2 * (100 + 60 + 3 * 40) + 2 * (100 + 3 * 40), 2 * 60),
        ({"trace_layout": "apart"}, 2 * (160 + 3 * 40 + 160) + 2 * (100 + 3 * 40), 2 * 60),
        ({"read_trace": False}, 2 * (160 + 3 * 40) + 2 * (100 + 3 * 40), 0),
        ({"packing": "rows"}, 2 * 3 * 200 + 2 * 3 * 140, 2 * 60),
        ({"privileged": 0}, 4 * (100 + 3 * 40), 0),
    ],
)
def test_a_step_holds_the_tokens_of_its_blocks_and_scores_what_is_sampled(changes, tokens, scored):
    (planned,) = step_packs(step(**changes), LENGTHS)
    assert planned.pack.tokens == tokens
    assert planned.head_tokens == 4 * 3 * 20 + scored


def test_packs_keep_to_their_limit():
    packs = step_packs(step(max_tokens=300), LENGTHS)
    assert len(packs) > 1
    assert fullest(packs).pack.tokens <= 300
    assert sum(planned.head_tokens for planned in packs) == 4 * 3 * 20 + 2 * 60


def test_a_recipe_is_read_with_its_defaults_overlays_and_overrides(tmp_path):
    changed = ["--data.init_args.rollouts_per_prompt", "5", "--data.init_args.prompts_per_step", "2"]
    recipe = read_recipe(["-c", saved(tmp_path), *changed, "--trainer.devices", "2"])
    assert recipe.policy.lora_r == 4
    assert recipe.policy.model == BUNDLED
    assert recipe.head_chunk == 1024, "a default"
    assert (recipe.rollouts_per_prompt, recipe.processes) == (5, 2)
    assert (recipe.prompts_per_phase, recipe.prompts_per_step) == (1, 1), "of each process"
    assert (recipe.phases, recipe.device_type, recipe.trace_layout) == (1, "cpu", "shared")
    assert recipe.longest() == Lengths(600, 200, 200)


def test_a_recipe_for_a_gpu_is_planned_without_one(tmp_path, capsys):
    main(["plan", "-c", shallow(tmp_path, {"trainer.accelerator": "gpu"}), "--memory", "1GB", *GIVEN])
    told = capsys.readouterr().out
    assert "Memory of one cuda process" in told
    assert "fits 0.93 GiB" in told
    for word in ("saved for backward", "keys and values, 4 rows", "old", "reference", "backward", "1 TFLOP/s"):
        assert word in told
    assert "limits.rows: all 4 rollouts of a phase" in told


@pytest.mark.parametrize(
    "changes", [{"anchor_probability": 1.0}, {"ratio_context": "prompt", "coefficients": {"sft": 0.0}}]
)
def test_a_recipe_without_traces_is_planned_without_them(tmp_path, capsys, changes):
    given = {f"model.init_args.{name}": value for name, value in changes.items()}
    assert read_recipe(["-c", shallow(tmp_path, given)]).longest().trace == 0
    main(["plan", "-c", shallow(tmp_path, given), *GIVEN])
    assert "tokens of prompt, no trace, and" in capsys.readouterr().out


def told(capsys, *arguments):
    main(["plan", *arguments])
    return " ".join(capsys.readouterr().out.split())


def test_where_one_moment_does_not_fit_the_other_ones_setting_is_no_help(tmp_path, capsys):
    path = saved(tmp_path, {"data.init_args.limits.rows": 4})
    recipe = read_recipe(["-c", path])
    memory = make_plan(recipe, policy_skeleton(recipe.policy), recipe.longest()).memory
    assert memory.in_rollouts < memory.in_update
    between = f"{(memory.in_rollouts + memory.in_update) // 2 / 0.9 / 2**20}MiB"
    assert "limits.rows: no value fits: an update alone needs" in told(capsys, "-c", path, "--memory", between, *GIVEN)
    many = {"data.init_args.limits.rows": 64, "data.init_args.prompts_per_phase": 32}
    path, lengths = saved(tmp_path, many), ["--prompt", "100", "--trace", "10", "--trajectory", "100"]
    recipe = read_recipe(["-c", path])
    memory = make_plan(recipe, policy_skeleton(recipe.policy), Lengths(100, 10, 100)).memory
    assert memory.in_update < memory.in_rollouts
    between = f"{(memory.in_rollouts + memory.in_update) // 2 / 0.9 / 2**20}MiB"
    text = told(capsys, "-c", path, "--memory", between, *lengths, *GIVEN)
    assert "max_tokens_per_forward: no value fits: the rollouts alone need" in text


def test_settings_that_fit_are_told_with_what_they_are_of(tmp_path, capsys):
    path = shallow(tmp_path)
    lengths = ["--prompt", "100", "--trace", "60", "--trajectory", "80"]
    text = told(capsys, "-c", path, "--memory", "1GB", *lengths, *GIVEN)
    assert "any value; a whole step of about 496 tokens" in text
    assert "all 4 rollouts of a phase" in text
    assert "cpu process, MiB" in text
    many = {"data.init_args.limits.rows": 64, "data.init_args.prompts_per_phase": 32}
    assert_told(tmp_path, capsys, many, "in_rollouts", 1.0, "of a phase of these lengths; [0-9]+ if all are as long as")
    few = {"model.init_args.max_tokens_per_forward": 800, "data.init_args.prompts_per_step": 2}
    assert_told(tmp_path, capsys, few, "in_update", 0.97, "up to [0-9]+, less than the 800 that max_prompt_tokens and")


def assert_told(tmp_path, capsys, changes, moment, share, sentence):
    """With a card that holds a share of what a moment needs."""
    path, lengths = shallow(tmp_path, changes), ["--prompt", "100", "--trace", "60", "--trajectory", "80"]
    recipe = read_recipe(["-c", path])
    needed = getattr(make_plan(recipe, policy_skeleton(recipe.policy), Lengths(100, 60, 80)).memory, moment)
    text = told(capsys, "-c", path, "--memory", f"{needed * share / 0.9 / 1000 + 1}kB", *lengths, *GIVEN)
    assert re.search(sentence, text), text


def test_a_recipe_whose_limits_do_not_fit_a_forward_is_planned_with_shorter_lengths(tmp_path, capsys):
    path = shallow(tmp_path, {"model.init_args.max_tokens_per_forward": 700})
    text = told(capsys, "-c", path, "--memory", "1GB", "--prompt", "100", "--trajectory", "80", *GIVEN)
    assert "limits.rows: all 4 rollouts of a phase" in text


def test_a_context_that_is_longer_than_a_forward_s_limit_is_planned_as_a_forward_of_its_own(tmp_path):
    """As training runs it; ``max_context_tokens`` is what bounds it."""
    path = saved(tmp_path, {"model.init_args.max_tokens_per_forward": 800, "model.init_args.max_context_tokens": 1200})
    recipe = read_recipe(["-c", path])
    lengths = recipe.longest()
    assert (lengths.prompt, lengths.trajectory) == (recipe.max_prompt_tokens, recipe.max_trajectory_tokens)
    assert lengths.trace == min(1200 - lengths.prompt - lengths.trajectory, recipe.max_trajectory_tokens) > 0
    plan = make_plan(recipe, policy_skeleton(recipe.policy), lengths)
    whole = lengths.prompt + lengths.trace + lengths.trajectory
    assert plan.pack_tokens == whole > 800
    assert plan.memory.fill == 1.0


def test_rollouts_beside_the_update_do_not_add_up(tmp_path, capsys):
    alone = told(capsys, "-c", shallow(tmp_path, SERVER), "--tflops", "0.000001", "--bandwidth", "1000")
    beside = told(
        capsys,
        "-c",
        shallow(tmp_path, SERVER | {"data.init_args.overlap": True}),
        "--tflops",
        "0.000001",
        "--bandwidth",
        "1000",
    )
    whole, rollouts, updates = (float(number.replace(",", "")) for number in HOURS.search(alone).groups())
    assert whole == pytest.approx(rollouts + updates, abs=0.02)
    assert float(HOURS.search(beside)[1].replace(",", "")) == max(rollouts, updates)
    assert "one beside the other (data.overlap)" in beside


def test_further_prompts_are_told_as_the_most_that_they_may_add(tmp_path, capsys):
    recipe = shallow(tmp_path, {"data.init_args.resample_zero_variance": 3})
    found = told(capsys, "-c", recipe, "--tflops", "0.000001", "--bandwidth", "1000")
    rollouts = float(HOURS.search(found)[2].replace(",", ""))
    most = float(re.search(r"up to ([\d,.]+) h of rollouts with further prompts", found)[1].replace(",", ""))
    assert most == pytest.approx(3 * rollouts, abs=0.02)
    assert rollouts > 0
    usual = told(capsys, "-c", shallow(tmp_path), "--tflops", "0.000001", "--bandwidth", "1000")
    assert float(HOURS.search(usual)[2].replace(",", "")) == rollouts
    assert "further prompts" not in usual


def test_a_cards_seconds_are_not_this_machines(tmp_path, capsys):
    path = shallow(tmp_path, {"trainer.accelerator": "gpu"})
    assert "give the card's speed with --tflops and --bandwidth" in told(capsys, "-c", path, "--tflops", "1")
    assert "give the card's speed" not in told(capsys, "-c", path, *GIVEN)


def test_lengths_over_the_recipes_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["plan", "-c", saved(tmp_path), "--prompt", "601", *GIVEN])
    assert "--prompt 601 is above the recipe's max_prompt_tokens, 600; raise that too" in capsys.readouterr().err


def test_without_sft_the_rollouts_still_stand_behind_a_trace(tmp_path):
    without = {"model.init_args.coefficients": {"sft": 0.0}}
    assert read_recipe(["-c", saved(tmp_path, without)]).longest().trace == 200


def test_what_waits_in_the_hosts_memory_is_not_the_cards(tmp_path):
    changes = {"trainer.accelerator": "gpu", "model.init_args.offload_activations": True}
    recipe = read_recipe(["-c", saved(tmp_path, changes)])
    memory = make_plan(recipe, policy_skeleton(recipe.policy), LENGTHS).memory
    assert memory.saved == 0 < memory.kept
    assert memory.in_update < memory.standing.always + memory.kept + memory.working


def test_what_fits_fits_and_a_little_more_does_not(tmp_path):
    recipe = read_recipe(["-c", shallow(tmp_path, {"data.init_args.prompts_per_step": 2})])
    skeleton, lengths = policy_skeleton(recipe.policy), Lengths(100, 60, 80)
    memory = make_plan(recipe, skeleton, lengths).memory
    card = int(memory.in_update / 0.9) + 10**6
    fit = largest_fit(recipe, skeleton, lengths, memory, card)
    assert fit.tokens.value is not None
    assert fit.rows == Largest(4, is_all=True)
    assert fit.rows_at_limits.value <= 4
    none = largest_fit(recipe, skeleton, lengths, memory, 10**6)
    assert (none.tokens, none.rows) == (Largest(None, is_all=False), Largest(None, is_all=False))


def test_the_largest_is_found_where_bytes_grow_nearly_in_proportion():
    tried = []

    def taken(number):
        tried.append(number)
        return 1000 + 7 * number + number**2 // 1000

    assert taken(_largest(taken, 5000, 10_000)) <= 5000 < taken(_largest(taken, 5000, 10_000) + 8)
    assert _largest(taken, 10**9, 10_000) == 10_000
    assert _largest(taken, 999, 10_000) is None


def test_the_phases_work_is_that_of_a_real_phase_in_tokens_and_forwards(tmp_path):
    recipe = read_recipe(["-c", saved(tmp_path)])
    plan = make_plan(recipe, policy_skeleton(recipe.policy), LENGTHS)
    passes = {one.name: one for one in plan.passes}
    assert list(passes) == ["prefill", "decode", "old", "reference", "forward", "backward"]
    (pack,) = planned_packs(recipe, LENGTHS)
    assert passes["forward"].tokens == 2 * pack.pack.tokens, "two steps"
    assert passes["prefill"].tokens == 2 * 100 + 2 * 2 * 20, "each prompt once, each observation"
    assert passes["decode"].tokens == 2 * 2 * 20
    assert plan.decoding.steps == 20, "all four rollouts at a time"
    assert passes["reference"].flops < passes["forward"].flops < passes["backward"].flops


def test_decoding_takes_the_longer_of_reading_and_reckoning():
    passes = [Passes("decode", 10, 100, 10**9), Passes("forward", 1, 100, 10**9)]
    decoding = Decoding(steps=10, cached=100, rows=2)
    speed = Speed(flops=10**9, bandwidth=10**6, source="")
    seconds = phase_seconds(passes, decoding, speed, weight_bytes=10**6, cached_bytes=100 * decoding.cached)
    assert seconds == {"decode": pytest.approx(10 * 1.02), "forward": 1.0}
    assert phase_seconds(passes, decoding, speed, weight_bytes=10, cached_bytes=0)["decode"] == 1.0


def test_the_probe_measures_this_machine():
    speed = probe_speed(torch.device("cpu"), torch.float32)
    assert 1e8 < speed.flops < 1e15
    assert 1e8 < speed.bandwidth < 1e13
    assert "measured" in speed.source


@pytest.mark.parametrize(("text", "size"), [("24GB", 24 * 10**9), ("80GiB", 80 * 2**30), ("1.5 gb", 15 * 10**8)])
def test_sizes(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--memory", "much"], "--memory must be a size such as 24GB or 80GiB, not 'much'"),
        (["--memory", "24"], "--memory must be a size such as 24GB or 80GiB, not '24'"),
        (["--memory", "1..2GB"], "--memory must be a size"),
        (["--tflops", "0"], "--tflops must be above 0, not 0"),
        (["--data.init_args.max_prompt_tokens", "9000"], "do not fit model.max_tokens_per_forward = 4096"),
        (["--trajectory", "0"], "a trajectory of at least one token"),
        (["--trace", "5000"], "over model.max_context_tokens = 4096"),
        (["--sampled-share", "1.5"], "the sampled share must be above 0 and at most 1, not 1.5"),
        (["--model.init_args.policy.model", "/no/where"], "there is no model folder /no/where"),
        (["--model.init_args.packing", "loosely"], "packing"),
        (["--model.init_args.attention", "flex"], "attention 'flex' is for cuda devices, but the policy is on cpu"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", "-c", saved(tmp_path), *arguments])
    told = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert sentence in told
    assert told.splitlines()[-1].startswith("error: ")


def test_a_plan_without_a_recipe_or_of_another_method_says_so(tmp_path, capsys):
    for arguments, sentence in (
        ([], "give a recipe to plan"),
        (["-c", "recipes/bundled_policy/1_pretrain.yaml"], "plan knows recipes that train by rollouts"),
    ):
        with pytest.raises(SystemExit):
            main(["plan", *arguments])
        assert sentence in capsys.readouterr().err


class FewerArguments(PACTModule):
    """Has arguments of its own and few of PACTModule's."""

    def __init__(self, *, policy: PolicyConfig = PolicyConfig(), tokens: int = 4096, extra: str = "") -> None:  # noqa: B008
        super().__init__(policy=policy, max_tokens_per_forward=tokens)
        self.extra = extra


class MoreArguments(PACTModule):
    """Hands on whatever it does not know."""

    def __init__(self, *, extra: str = "", head_chunk: int = 99, **kwargs: Any) -> None:
        super().__init__(head_chunk=head_chunk, **kwargs)
        self.extra = extra


class MoreData(RolloutDataModule):
    """Hands on whatever it does not know."""

    def __init__(self, *, extra: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.extra = extra


def test_a_subclass_is_planned_with_its_own_defaults_and_the_parents_arguments(tmp_path, capsys):
    path = shallow(tmp_path)
    classes = ["--model.class_path", f"{__name__}.MoreArguments", "--data.class_path", f"{__name__}.MoreData"]
    recipe = read_recipe(["-c", path, *classes, "--data.init_args.extra", "3"])
    assert recipe == replace(read_recipe(["-c", path]), head_chunk=99)
    main(["plan", "-c", path, *classes, *GIVEN])
    assert "Memory of one cpu process" in capsys.readouterr().out


def test_arguments_that_a_subclass_does_not_have_take_the_parents_defaults(tmp_path):
    config = {"class_path": f"{__name__}.FewerArguments", "init_args": {"policy": {"lora_r": 4}, "tokens": 5000}}
    recipe = read_recipe(["-c", saved(tmp_path, {"model": config})])
    assert (recipe.policy.lora_r, recipe.policy.adapter) == (4, "lora")
    assert (recipe.max_tokens_per_forward, recipe.head_chunk, recipe.anchor_probability) == (32_768, 1024, 0.4)
    assert recipe.rows == 4, "the data are as they were"


def test_a_class_by_its_home_is_the_class(tmp_path):
    changes = {"model.class_path": "pact_lightning.training.pact_module.PACTModule"}
    assert read_recipe(["-c", saved(tmp_path, changes)]) == read_recipe(["-c", saved(tmp_path)])


def test_no_weights_are_loaded(tmp_path):
    skeleton = policy_skeleton(read_recipe(["-c", saved(tmp_path)]).policy)
    assert {weight.device.type for weight in skeleton.parameters()} == {"meta"}
    loaded = load_policy(read_recipe(["-c", saved(tmp_path)]).policy)
    shapes = {name: (weight.shape, weight.dtype, weight.requires_grad) for name, weight in loaded.named_parameters()}
    assert shapes == {
        name: (weight.shape, weight.dtype, weight.requires_grad) for name, weight in skeleton.named_parameters()
    }
    assert json.dumps(skeleton.peft_config["default"].r) == "4"
