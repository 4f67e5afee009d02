"""The bundled world: reproducible tasks, solvable by their references and experts, and tools that refuse helpfully."""

import json
from collections import Counter
from itertools import combinations

import pytest

from pact_lightning.credit.answers import count_solved, solve_scores
from pact_lightning.environments.protocol import Environment
from pact_lightning.tasks.bundled.questions import KINDS
from pact_lightning.tasks.bundled.tasks import BundledTasks, make_task
from pact_lightning.tasks.bundled.tools import TOOL_SCHEMAS, BundledWorld
from pact_lightning.tasks.bundled.world import CENSUS_YEARS, NAME_KINDS, PROFESSIONS, SPLITS, generate_world, words
from pact_lightning.tasks.record import check_task, task_from_json, task_to_json
from pact_lightning.traces.leak import leak_reasons, trace_problems
from pact_lightning.traces.levels import literal_call_spans, prefix_ends
from pact_lightning.types.trace import ChunkType, TurnPattern

COUNT = 500
SMALL = 60


@pytest.fixture(scope="module")
def tasks():
    return {split: BundledTasks(split, COUNT).load() for split in SPLITS}


def opened(task):
    environment = task.prompt.environment.build()
    environment.reset(task.prompt, 0)
    return environment


def world_with_everything(split="test", index=3):
    """An environment that offers every tool, for calls that no single task could make."""
    prompt = make_task(split, index).prompt
    environment = BundledWorld(split, index)
    everything = type(prompt)(prompt.id, prompt.messages, tuple(TOOL_SCHEMAS.values()), prompt.environment)
    environment.reset(everything, 0)
    return environment, generate_world(split, index)


# ---------------------------------------------------------------------------------------------------- generation


def test_a_task_depends_on_its_split_and_number_alone(tasks):
    for split in SPLITS:
        assert [make_task(split, index) for index in (0, 7, 41)] == [tasks[split][index] for index in (0, 7, 41)]
        assert BundledTasks(split, 5, start=40).load() == tasks[split][40:45]
        assert len({task.id for task in tasks[split]}) == COUNT
    assert generate_world("train", 3) == generate_world("train", 3)
    assert generate_world("train", 3) != generate_world("train", 4)


def test_no_name_is_in_two_splits():
    for one, other in combinations(SPLITS, 2):
        for kind in NAME_KINDS:
            assert set(words(one, kind)).isdisjoint(words(other, kind))
    for split in SPLITS:
        for index in range(30):
            world = generate_world(split, index)
            used = {part for names in world.entities.values() for name in names for part in name.split()}
            assert used <= {word for kind in NAME_KINDS for word in words(split, kind)}


def test_all_tasks_are_well_formed_and_survive_json(tasks):
    for split in SPLITS:
        for task in tasks[split][:SMALL]:
            check_task(task)
            assert task_from_json(json.loads(json.dumps(task_to_json(task)))) == task


def test_kinds_and_numbers_of_calls(tasks):
    for split in ("train", "validation", "test"):
        assert {task.kind for task in tasks[split]} == set(KINDS)
        assert {len(task.reference.calls) for task in tasks[split]} == set(range(1, 7))
    assert {len(task.reference.calls) for task in tasks["longer"]} == {7, 8}
    for split in SPLITS:
        assert all(task.metadata["calls"] == len(task.reference.calls) for task in tasks[split])
    hops = {kind: {len(t.reference.calls) for t in tasks["train"] if t.kind == kind} for kind in KINDS}
    assert hops["single_hop"] == {1}
    assert hops["parallel_single_hop"] == {2, 3}
    assert hops["multi_hop"] == set(range(2, 7))
    assert hops["parallel_multi_hop"] <= {4, 5}


def test_offered_tools_hold_all_that_is_needed_and_distractors(tasks):
    for split in SPLITS:
        for task in tasks[split]:
            needed = {call["name"] for call in task.reference.calls}
            assert needed < set(task.prompt.tool_names)
            assert len(set(task.prompt.tool_names)) == len(task.prompt.tools)


@pytest.mark.parametrize("arguments", [{"split": "dev"}, {"count": 0}, {"start": -1}, {"flawed": 1.5}])
def test_tasks_that_make_no_sense_are_refused(arguments):
    with pytest.raises(ValueError, match="bundled"):
        BundledTasks(**arguments)


# --------------------------------------------------------------------------------------------- references and experts


def test_reference_calls_find_the_sub_answers_with_a_solve_f1_of_one(tasks):
    for split in SPLITS:
        for task in tasks[split]:
            environment = opened(task)
            assert isinstance(environment, Environment)
            calls = []
            for call, sub_answer in zip(task.reference.calls, task.reference.sub_answers, strict=True):
                result = environment.call(call["name"], call["arguments"])
                assert not result.error
                assert sub_answer.tool == call["name"]
                assert sub_answer.answer in map(str, json.loads(result.text).values())
                calls.append((call["name"], result.text))
            solved = count_solved(calls, task.reference.sub_answers)
            assert solve_scores(len(task.reference.sub_answers), len(calls), solved) == (1.0, 1.0, 1.0)


def test_the_answer_is_what_the_last_calls_found(tasks):
    for split in SPLITS:
        for task in tasks[split]:
            found = [sub_answer.answer for sub_answer in task.reference.sub_answers]
            pair = task.kind == "parallel_single_hop" and len(found) == 2
            assert task.reference.answer == (" and ".join(found) if pair else found[-1])


def test_the_sound_expert_always_arrives(tasks):
    for split in SPLITS:
        for task in tasks[split]:
            assert task.trace.final.answer == f"<answer>{task.reference.answer}</answer>"


def test_the_expert_s_responses_are_what_the_tools_say(tasks):
    for split in SPLITS:
        for task in tasks[split]:
            environment = opened(task)
            for turn in task.trace.turns:
                again = [environment.call(call["name"], call["arguments"]).text for call in turn.calls]
                assert list(turn.responses) == again


def test_traces_hold_detours_retries_and_second_paths_but_not_too_many(tasks):
    train = tasks["train"]
    longer_than_needed = [sum(len(t.calls) for t in task.trace.turns) > len(task.reference.calls) for task in train]
    assert 0.05 < sum(longer_than_needed) / COUNT < 0.4
    retried = [any(t.pattern is TurnPattern.RETRY_AFTER_FAILED_CALL for t in task.trace.turns) for task in train]
    assert 0.05 < sum(retried) / COUNT < 0.4
    misspelled = [task for task in train if task.metadata["misspelled"]]
    assert 0.03 < len(misspelled) / COUNT < 0.15
    assert all(any("did_you_mean" in text for t in task.trace.turns for text in t.responses) for task in misspelled)
    profiles = sum("profile_of" in task.prompt.tool_names for task in train)
    assert 0.1 < profiles / COUNT < 0.4
    used = {call["name"] for task in train for turn in task.trace.turns for call in turn.calls}
    assert used == set(TOOL_SCHEMAS)
    assert any(len(turn.calls) > 1 for task in train for turn in task.trace.turns)


def test_profile_of_is_a_second_path_to_the_same_fact(tasks):
    environment, world = world_with_everything()
    for person in world.people:
        profile = json.loads(environment.call("profile_of", {"person": person}).text)
        for fact in ("birthplace", "employer", "spouse"):
            assert json.loads(environment.call(f"{fact}_of", {"person": person}).text) == {fact: profile[fact]}


def test_chunk_types_and_patterns_in_use(tasks):
    turns = [turn for task in tasks["train"] for turn in (*task.trace.turns, task.trace.final)]
    types = Counter(chunk.type for turn in turns for chunk in turn.chunks)
    assert {
        ChunkType.TASK_RESTATE,
        ChunkType.TOOL_SELECTION,
        ChunkType.DECISION_SUMMARY,
        ChunkType.FAILURE_REFLECTION,
        ChunkType.FALLBACK_PLAN,
        ChunkType.IRRELEVANT_TOOL_REJECTION,
        ChunkType.FINAL_ANSWER_GROUNDING,
    } == set(types)
    for task in tasks["train"]:
        assert task.trace.turns[0].pattern is TurnPattern.INITIAL_ATTEMPT
        assert task.trace.final.pattern is TurnPattern.FINAL_ANSWER_TURN
        assert all(turn.pattern is not TurnPattern.INITIAL_ATTEMPT for turn in task.trace.turns[1:])


def test_no_reasoning_holds_its_call_and_every_prefix_reaches_to_the_end(tasks):
    for split in SPLITS:
        for task in tasks[split][: 2 * SMALL]:
            assert trace_problems(task.trace, task.prompt.tool_names) == []
            assert leak_reasons(task.trace, task.reference.answer) == []
            for turn in task.trace.turns:
                assert literal_call_spans(turn.reasoning, turn.calls) == []
                assert prefix_ends(turn.chunks, turn.calls)[-1] == len(turn.reasoning)


def test_flawed_traces_are_flawed_and_leave_the_task_alone():
    sound, flawed = BundledTasks("train", 200).load(), BundledTasks("train", 200, flawed=1.0).load()
    assert [task.prompt for task in flawed] == [task.prompt for task in sound]
    assert [task.reference for task in flawed] == [task.reference for task in sound]
    wrong = sum(task.trace.final.answer != f"<answer>{task.reference.answer}</answer>" for task in flawed)
    assert 20 < wrong < 180


# --------------------------------------------------------------------------------------------------------- refusals


def refused(environment, name, arguments):
    result = environment.call(name, arguments)
    assert result.error
    return json.loads(result.text)


def test_a_misspelled_name_comes_back_with_the_right_one():
    environment, world = world_with_everything()
    work = world.entities["work"][0]
    assert refused(environment, "author_of", {"work": work[:-1]}) == {"error": "unknown work", "did_you_mean": work}
    assert refused(environment, "author_of", {"work": "Xyz"}) == {"error": "unknown work"}
    # A name of another kind is unknown too.
    assert refused(environment, "author_of", {"work": world.people[0]})["error"] == "unknown work"


def test_a_shared_last_name_is_ambiguous_until_the_profession_is_given():
    environment, world = world_with_everything()
    one, other = world.people[0], world.people[-1]
    last = one.split()[-1]
    assert other.split()[-1] == last
    assert refused(environment, "spouse_of", {"person": last}) == {"error": "ambiguous name", "use": "find_person"}
    for person in (one, other):
        arguments = {"name": last, "profession": world.professions[person]}
        assert json.loads(environment.call("find_person", arguments).text) == {"person": person}
    third = next(p for p in PROFESSIONS if p not in (world.professions[one], world.professions[other]))
    assert refused(environment, "find_person", {"name": last, "profession": third}) == {"error": "wrong profession"}
    assert refused(environment, "find_person", {"name": last, "profession": "king"}) == {"error": "unknown profession"}
    assert refused(environment, "find_person", {"name": "Xyz", "profession": third}) == {"error": "unknown name"}


def test_calls_that_do_not_fit_the_schema_say_why():
    environment, world = world_with_everything()
    place = world.entities["place"][0]
    missing = {"error": "missing argument", "argument": "year"}
    assert refused(environment, "population_of", {"place": place}) == missing
    assert refused(environment, "population_of", {"place": place, "year": 1}) == {"error": "no census in this year"}
    wrong = {"error": "wrong type", "argument": "year"}
    for year in ("1900", True, 1900.0, None):
        assert refused(environment, "population_of", {"place": place, "year": year}) == wrong
    assert refused(environment, "mayor_of", {"place": [place]}) == {"error": "wrong type", "argument": "place"}
    unknown = {"error": "unknown argument", "argument": "when"}
    assert refused(environment, "mayor_of", {"place": place, "when": 1}) == unknown
    for year in CENSUS_YEARS:
        expected = {"population": world.facts[f"{year} population"][place]}
        assert json.loads(environment.call("population_of", {"place": place, "year": year}).text) == expected


def test_only_offered_tools_answer(tasks):
    task = tasks["test"][0]
    environment = opened(task)
    missing = next(name for name in TOOL_SCHEMAS if name not in task.prompt.tool_names)
    assert refused(environment, missing, {}) == {"error": "unknown tool"}
    assert refused(environment, "rm", {}) == {"error": "unknown tool"}
    with pytest.raises(RuntimeError, match="reset"):
        BundledWorld("test", 0).call("add", {"a": 1, "b": 2})


@pytest.mark.parametrize(
    ("a", "b", "total", "difference", "larger"), [(1, 2, 3, 1, 2), (-5, 3, -2, 8, 3), (4, 4, 8, 0, 4)]
)
def test_arithmetic(a, b, total, difference, larger):
    environment, _ = world_with_everything()
    results = [json.loads(environment.call(name, {"a": a, "b": b}).text) for name in ("add", "subtract", "larger")]
    assert results == [{"result": total}, {"result": difference}, {"result": larger}]
