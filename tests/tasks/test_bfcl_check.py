"""BFCL's check: all ground truths pass, and the verdict on anything else is the leaderboard's own."""

import random
from dataclasses import replace

import pytest
from bfcl_play import LIMITS, Official, lines_of, roll_out

from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.policy.loading import PolicyConfig, load_tokenizer
from pact_lightning.tasks.bfcl.package import INSTALL
from pact_lightning.tasks.bfcl.rows import CATEGORIES
from pact_lightning.tasks.bfcl.score import MultiTurnAccuracy, bfcl_case, check_calls, check_trajectory, is_correct
from pact_lightning.tasks.bfcl.tasks import BFCLTasks
from pact_lightning.types.trajectory import StopReason

EVERY = pytest.mark.parametrize("every", [25, pytest.param(1, marks=pytest.mark.slow)])
"""Every twenty-fifth task, which holds all categories; all 800 take a minute."""

pytest.importorskip("bfcl_eval", reason=f"needs BFCL: {INSTALL}")


@pytest.fixture(scope="module")
def renderer():
    return ChatRenderer(TextCodec(load_tokenizer(PolicyConfig(model="bundled"))))


@pytest.fixture(scope="module")
def tasks():
    return BFCLTasks(list(CATEGORIES)).load()


@pytest.fixture(scope="module")
def short_tasks():
    """The same with a few tools each, so that the prompts are short."""
    return BFCLTasks(list(CATEGORIES), distractors=5).load()


@pytest.fixture(scope="module")
def official():
    return Official()


def ground_truth(task):
    """One step per user turn, as the traces have it."""
    return [[list(calls)] if calls else [] for calls in task.metadata["ground_truth"]]


def accuracy(tasks, rollouts):
    metric = MultiTurnAccuracy()
    for task, rollout in zip(tasks, rollouts, strict=True):
        metric.update(rollout, task)
    return {name: float(value) for name, value in metric.compute().items()}


@EVERY
def test_all_ground_truths_pass(renderer, tasks, every):
    tasks = tasks[::every]
    rollouts = roll_out(renderer, [(task, lines_of(ground_truth(task))) for task in tasks])
    scores = accuracy(tasks, rollouts)
    assert scores.pop("multi_turn_tasks") == len(tasks) == 800 // every
    assert len(scores) == 5
    assert set(scores.values()) == {1.0}
    for task, rollout in zip(tasks, rollouts, strict=True):
        assert rollout.stop_reason is StopReason.ANSWERED
        seen = [response for turn in rollout.turns for response in turn.responses]
        assert seen == [response for turn in task.trace.turns for response in turn.responses], task.id


def without_a_call(task):
    """Every way to leave one call out of the ground truth, those of the last user turns first."""
    for turn in reversed(range(len(task.metadata["ground_truth"]))):
        for place in range(len(task.metadata["ground_truth"][turn])):
            steps = ground_truth(task)
            del steps[turn][0][place]
            yield steps


@EVERY
def test_a_dropped_call_fails(renderer, short_tasks, official, every):
    """For each task the first drop that the leaderboard rejects."""
    tasks = short_tasks[::every]
    plays = []
    for task in tasks:
        rejected = (steps for steps in without_a_call(task) if not official.verdict(task, steps))
        plays.append((task, lines_of(next(rejected))))
    scores = accuracy(tasks, roll_out(renderer, plays))
    assert scores["multi_turn_tasks"] == 800 // every
    assert scores["multi_turn_accuracy"] == 0


@EVERY
def test_every_dropped_call_has_the_official_verdict(short_tasks, official, every):
    """Of 4,625 calls, three do not matter: in scenario 113 one is asked twice with the same answer."""
    accepted, drops = set(), 0
    for task in short_tasks[::every]:
        case = bfcl_case(task)
        for steps in without_a_call(task):
            ours = is_correct(check_calls([[call for step in turn for call in step] for turn in steps], case), case)
            assert ours == official.verdict(task, steps), (task.id, steps)
            drops += 1
            if ours:
                accepted.add(task.id)
    if every == 1:
        assert drops == 4625
        assert accepted == {"multi_turn_base_113", "multi_turn_miss_func_113", "multi_turn_miss_param_113"}
    else:
        assert drops > 4000 // every


def dropped(steps, task, draw):
    turn = draw.choice([turn for turn in steps if turn])
    del turn[0][draw.randrange(len(turn[0]))]


def reordered(steps, task, draw):
    calls = [(turn, place) for turn, step in enumerate(steps) if step for place in range(len(step[0]))]
    (turn, place), (other, other_place) = draw.choice(calls), draw.choice(calls)
    steps[turn][0][place], steps[other][0][other_place] = steps[other][0][other_place], steps[turn][0][place]


def duplicated(steps, task, draw):
    turn = draw.choice([turn for turn in steps if turn])
    turn.append([draw.choice(turn[0])])


def changed_argument(steps, task, draw):
    turn = draw.choice([turn for turn in steps if turn])
    place = draw.randrange(len(turn[0]))
    arguments = dict(turn[0][place]["arguments"])
    name = draw.choice([*arguments, "verbose"])
    arguments[name] = draw.choice(["other", 3, -1.5, True, None, [], ["x", 2], {"a": 1}])
    turn[0][place] = {"name": turn[0][place]["name"], "arguments": arguments}


def wrong_function(steps, task, draw):
    turn = draw.choice([turn for turn in steps if turn])
    place = draw.randrange(len(turn[0]))
    name = draw.choice([*task.prompt.tool_names, "no_such_function"])
    turn[0][place] = {"name": name, "arguments": turn[0][place]["arguments"]}


def extra_call(steps, task, draw):
    """A call of another place of the task, perhaps of a function that is held back there."""
    donor = draw.choice([turn for turn in steps if turn])
    draw.choice(steps).insert(0, [draw.choice(donor[0])])


def empty_turn(steps, task, draw):
    draw.choice([turn for turn in steps if turn]).clear()


PERTURBATIONS = (dropped, reordered, duplicated, changed_argument, wrong_function, extra_call, empty_turn)


def as_the_leaderboard_sees_it(task, steps):
    """A function that was held back when it was called was not there: the engine refused it, and nothing ran."""
    seen = []
    for released, turn in enumerate(steps):
        offered = task.prompt.tool_names_after(released)
        seen.append(
            [
                [call if call["name"] in offered else call | {"name": f"absent_{call['name']}"} for call in step]
                for step in turn
            ]
        )
    return seen


def test_perturbed_rollouts_have_the_official_verdict(renderer, short_tasks, official):
    plays, perturbed = [], []
    for number, task in enumerate(short_tasks[::3]):
        steps = ground_truth(task)
        perturb = PERTURBATIONS[number % len(PERTURBATIONS)]
        perturb(steps, task, random.Random(number))
        steps = [[step for step in turn if step] for turn in steps]
        perturbed.append((perturb.__name__, task, steps))
        plays.append((task, lines_of(steps)))
    counts = {}
    for (name, task, steps), rollout in zip(perturbed, roll_out(renderer, plays), strict=True):
        case = bfcl_case(task)
        ours = is_correct(check_trajectory(rollout, task, case), case)
        assert ours == official.verdict(task, as_the_leaderboard_sees_it(task, steps)), (name, task.id, steps)
        counts.setdefault(name, []).append(ours)
    assert sum(map(len, counts.values())) == 267
    assert all(not all(verdicts) for verdicts in counts.values()), counts
    assert not any(counts["empty_turn"])
    assert {name for name, verdicts in counts.items() if any(verdicts)} >= {"duplicated", "reordered", "extra_call"}


def test_a_rollout_that_a_limit_ended(renderer, tasks):
    """Before the last user turn it has failed; within the last one it is judged by what it had done [C]."""
    task = next(task for task in tasks if [len(calls) for calls in task.metadata["ground_truth"]] == [1, 1, 1])
    case, lines = bfcl_case(task), lines_of(ground_truth(task))
    verdicts = []
    for turns in range(1, len(lines) + 1):
        (rollout,) = roll_out(renderer, [(task, lines)], replace(LIMITS, max_turns=turns))
        checks = check_trajectory(rollout, task, case)
        assert all(check.valid for check in checks[:-1])
        verdicts.append((rollout.stop_reason is StopReason.ANSWERED, is_correct(checks, case)))
    assert verdicts == [(False, False)] * 4 + [(False, True), (True, True)]


def test_a_malformed_call_is_no_call(renderer, tasks):
    task = tasks[0]
    lines = ["<tool_call>cd(folder='x')</tool_call>", *lines_of(ground_truth(task))]
    (rollout,) = roll_out(renderer, [(task, lines)])
    case = bfcl_case(task)
    assert is_correct(check_trajectory(rollout, task, case), case)
    nothing = ["<tool_call>{}</tool_call>"] + ["ok"] * len(task.metadata["ground_truth"])
    (rollout,) = roll_out(renderer, [(task, nothing)])
    checks = check_trajectory(rollout, task, case)
    assert not any(check.called for check in checks)


def test_tasks_of_other_kinds_are_not_counted(renderer, tasks):
    task = tasks[0]
    (rollout,) = roll_out(renderer, [(task, lines_of(ground_truth(task)))])
    metric = MultiTurnAccuracy()
    metric.update(rollout, replace(task, metadata={}))
    assert all(value.isnan() for value in metric.compute().values())
    metric.update(rollout, task)
    assert {name for name, value in metric.compute().items() if not value.isnan()} == {
        "multi_turn_accuracy",
        "multi_turn_accuracy_base",
        "multi_turn_tasks",
    }
