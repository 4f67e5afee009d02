"""BFCL's tasks: what the prompt shows and when, the split by scenario, traces, and rows that are wrong."""

import json
import re
import shutil
from collections import Counter

import numpy as np
import pytest
from bfcl_play import roll_out
from hypothesis import given
from hypothesis import strategies as st

from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.policy.loading import PolicyConfig, load_tokenizer
from pact_lightning.tasks.bfcl.package import INSTALL, data_folder
from pact_lightning.tasks.bfcl.rows import CATEGORIES, parameter_names, parse_call
from pact_lightning.tasks.bfcl.tasks import BFCLTasks, side_of
from pact_lightning.tasks.record import task_from_json, task_to_json
from pact_lightning.traces.leak import trace_problems
from pact_lightning.traces.tokens import render_trace
from pact_lightning.types.trace import flatten_calls
from pact_lightning.types.trajectory import Component, StopReason
from pact_lightning.utils.errors import TaskFileError

pytest.importorskip("bfcl_eval", reason=f"needs BFCL: {INSTALL}")

SIDES = ("train", "validation", "test")


@pytest.fixture(scope="module")
def renderer():
    return ChatRenderer(TextCodec(load_tokenizer(PolicyConfig(model="bundled"))))


@pytest.fixture(scope="module")
def tasks():
    return BFCLTasks(list(CATEGORIES)).load()


def test_all_rows_are_there(tasks):
    assert Counter(task.kind for task in tasks) == dict.fromkeys(CATEGORIES, 200)
    assert len({task.id for task in tasks}) == 800
    assert sum(len(task.reference.calls) for task in tasks) == 4625
    assert [task.id for task in tasks[:5]] == [*(f"multi_turn_{name}_0" for name in CATEGORIES), "multi_turn_base_1"]
    assert BFCLTasks(list(CATEGORIES), limit=4).load() == tasks[:4]
    assert all(task.id == f"multi_turn_{task.kind}_{task.metadata['scenario']}" for task in tasks)


def test_no_scenario_is_on_two_sides():
    sides = {side: BFCLTasks(list(CATEGORIES), subset=side).load() for side in SIDES}
    scenarios = {side: {task.metadata["scenario"] for task in found} for side, found in sides.items()}
    assert sum(map(len, scenarios.values())) == len(set.union(*scenarios.values())) == 200
    assert sum(map(len, sides.values())) == 800, "all four categories of a scenario are on its side"
    assert 105 <= len(scenarios["train"]) <= 135
    assert 28 <= len(scenarios["validation"]) <= 52
    only = {task.metadata["scenario"] for task in BFCLTasks("miss_func", subset="train").load()}
    assert only == scenarios["train"]


@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_sides_grow_with_their_fractions(scenario, first, second):
    low, high = sorted((first, second))
    assert side_of(scenario, 1.0, 0.0) == "train"
    assert side_of(scenario, 0.0, 0.0) == "test"
    if side_of(scenario, low, 0.0) == "train":
        assert side_of(scenario, high, 0.0) == "train"
    assert side_of(scenario, low, high - low) in (("train", "validation") if high == 1 else SIDES)


def test_held_back_functions_come_with_their_user_turn(renderer, tasks):
    """`multi_turn_miss_func_49` is the one row that needs a function before BFCL would release it."""
    kept = []
    for task in tasks:
        if task.kind != "miss_func":
            assert not any(turn.tools for turn in task.prompt.follow_ups)
            continue
        (place,) = (place for place, turn in enumerate(task.prompt.follow_ups) if turn.tools)
        released = {tool["function"]["name"] for tool in task.prompt.follow_ups[place].tools}
        assert task.prompt.follow_ups[place].content == ""
        text = renderer.codec.decode(renderer.prompt(task.prompt.messages, task.prompt.tools))
        assert not any(f'"name": "{name}"' in text for name in released)
        for turn, calls in enumerate(task.metadata["ground_truth"]):
            assert {call["name"] for call in calls} <= set(task.prompt.tool_names_after(turn))
        full = [tool["function"]["name"] for tool in task.prompt.environment.build().tools]
        assert sorted(task.prompt.tool_names) == sorted(full)
        kept += [task.id] if released != held_back_of(task.id) else []
    assert kept == ["multi_turn_miss_func_49"]


def held_back_of(row_id):
    lines = (data_folder() / "BFCL_v4_multi_turn_miss_func.json").read_text(encoding="utf-8").splitlines()
    row = next(row for row in map(json.loads, lines) if row["id"] == row_id)
    (names,) = row["missed_function"].values()
    return set(names)


def test_no_ground_truth_reaches_a_sampler(renderer, tasks):
    """A canary in every ground-truth value: none is in a token that the engine gives to a sampler."""
    for task in tasks[::40]:
        prompt = task.prompt
        assert "ground_truth" not in repr(prompt)
        shown = renderer.prompt(prompt.messages, prompt.tools)
        shown += [token for turn in prompt.follow_ups for token in renderer.user_turn(turn)]
        text = renderer.codec.decode(shown)
        for call in task.reference.calls:
            assert json.dumps(call["arguments"]) not in text or call["arguments"] == {}
            assert f'"name": "{call["name"]}", "arguments"' not in text
    record = json.dumps(task_to_json(tasks[0]))
    canary = record.replace('"final_report.pdf"', '"CANARY"')
    assert canary != record
    reference = json.loads(record)
    reference["reference"] = json.loads(canary)["reference"]
    reference["metadata"] = json.loads(canary)["metadata"]
    task = task_from_json(reference)
    (rollout,) = roll_out(renderer, [(task, ["ok"] * len(task.metadata["ground_truth"]))])
    given = [*rollout.prompt_ids, *rollout.ids().tolist()]
    assert "CANARY" not in renderer.codec.decode(given)
    assert "CANARY" in repr(task.reference)


def test_the_trace_is_the_ground_truth_and_renders_as_its_rollout(renderer, tasks):
    for task in tasks[::20]:
        calls = [calls for calls in task.metadata["ground_truth"] if calls]
        assert [list(turn.calls) for turn in task.trace.turns if turn.calls] == calls
        assert flatten_calls(task.trace.turns) == task.reference.calls
        assert task.trace.replies == len(task.prompt.follow_ups)
        assert not any(turn.chunks for turn in task.trace.turns)
        rendered = render_trace(renderer, task.trace, task.prompt.follow_ups, with_final=True)
        policy = ~np.isin(rendered.components, [Component.OBSERVATION, Component.PROMPT])
        turns = range(len(task.trace.turns) + 1)
        (rollout,) = roll_out(
            renderer, [(task, [rendered.ids[policy & (rendered.turns == t)].tolist() for t in turns])]
        )
        assert rollout.stop_reason is StopReason.ANSWERED
        assert rollout.ids().tolist() == rendered.ids.tolist()


def test_one_call_per_expert_turn(tasks):
    single = BFCLTasks(list(CATEGORIES), trace_turns="call", limit=80).load()
    for one, other in zip(single, tasks, strict=False):
        assert {len(turn.calls) for turn in one.trace.turns} <= {0, 1}
        assert flatten_calls(one.trace.turns) == flatten_calls(other.trace.turns)
        texts = [[text for turn in task.trace.turns for text in turn.responses] for task in (one, other)]
        assert texts[0] == texts[1]
        assert one.trace.final == other.trace.final


def test_traces_have_no_problems_and_tasks_survive_a_file(tasks):
    for task in tasks[::3]:
        assert trace_problems(task.trace, task.prompt.tool_names) == []
        assert task_from_json(json.loads(json.dumps(task_to_json(task)))) == task


def test_distractors_keep_what_the_ground_truth_needs(tasks):
    for few, full in zip(BFCLTasks(list(CATEGORIES), distractors=2).load(), tasks, strict=True):
        needed = {call["name"] for call in full.reference.calls}
        needed |= {tool["function"]["name"] for turn in full.prompt.follow_ups for tool in turn.tools}
        assert needed <= set(few.prompt.tool_names)
        assert len(few.prompt.tool_names) <= len(needed) + 2
        assert few.trace == full.trace


def test_the_system_prompt_is_an_option():
    (task,) = BFCLTasks(limit=1, system_prompt=None).load()
    assert [message["role"] for message in task.prompt.messages] == ["user"]
    (task,) = BFCLTasks(limit=1, system_prompt="Be brief.").load()
    assert task.prompt.messages[0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cd(", "is not a Python expression"),
        ("cd('a'); cd('b')", "is not a Python expression"),
        ("3", "is not the call of a function by its name"),
        ("os.remove('a')", "is not the call of a function by its name"),
        ("remove('a')", "calls 'remove', which none of the involved classes has"),
        ("cd('a', 'b')", "has 2 positional arguments, but cd takes 1"),
        ("cd('a', folder='b')", "gives 'folder' twice"),
        ("cd(path='a')", "has the argument 'path', but cd takes folder"),
        ("cd(**{'folder': 'a'})", "has the argument '**'"),
        ("cd(*['a'])", "is no literal JSON value"),
        ("cd(open('a'))", "is no literal JSON value"),
        ("cd(b'a')", "is no literal JSON value"),
        ("cd({1: 2})", "is no literal JSON value"),
        ("cd(" + "[" * 500 + "]" * 500 + ")", "is not a Python expression"),
    ],
)
def test_ground_truth_is_read_and_never_run(text, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        parse_call(text, parameter_names(("GorillaFileSystem",)))


@given(st.lists(st.one_of(st.integers(), st.text(), st.booleans(), st.lists(st.floats(allow_nan=False))), max_size=3))
def test_literals_come_back(values):
    names = ("a", "b", "c")
    for named in range(len(values) + 1):
        head = [repr(value) for value in values[:named]]
        tail = [f"{name}={value!r}" for name, value in list(zip(names, values, strict=False))[named:]]
        wanted = {"name": "f", "arguments": dict(zip(names, values, strict=False))}
        if "inf" not in repr(values):
            assert parse_call(f"f({', '.join(head + tail)})", {"f": names}) == wanted


def broken_folder(tmp_path, change, answers=False):
    """BFCL's first three rows of a category, the second one changed."""
    name = "BFCL_v4_multi_turn_miss_func.json"
    (tmp_path / "possible_answer").mkdir()
    for part, is_changed in ((name, not answers), (f"possible_answer/{name}", answers)):
        lines = (data_folder() / part).read_text(encoding="utf-8").splitlines()[:3]
        if is_changed:
            row = json.loads(lines[1])
            lines[1] = change(row) or json.dumps(row)
        (tmp_path / part).write_text("\n".join(lines), encoding="utf-8")
    return BFCLTasks("miss_func", folder=tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda row: "{", "line 2: is not valid JSON"),
        (lambda row: "[]", "line 2: field `(the line)`: must be an object"),
        (lambda row: row.pop("id") and None, "line 2: field `id`: is missing"),
        (lambda row: row.update(id="x"), "field `id`: 'x' has no ground truth in"),
        (lambda row: row.update(id="multi_turn_miss_func_0"), "field `id`: 'multi_turn_miss_func_0' is already"),
        (lambda row: row.update(involved_classes=["WebSearchAPI"]), "`involved_classes`: there is no simulated API"),
        (lambda row: row.update(involved_classes=[3]), "field `involved_classes`: must be a string"),
        (lambda row: row.update(question=[]), "field `question`: has no user turn"),
        (lambda row: row["question"][0].clear(), "field `question[0]`: must hold one user message"),
        (lambda row: row["question"][0].append({"role": "user"}), "field `question[0]`: must hold one user message"),
        (lambda row: row["question"][0][0].update(content=3), "field `question[0][0].content`: must be a string"),
        (lambda row: row["question"].pop() and None, "field `ground_truth`: has 5 user turns, but the row has 4"),
        (lambda row: row.update(missed_function={"9": ["ls"]}), "field `missed_function.9`: must be the index"),
        (lambda row: row.update(missed_function={"0": ["ls"]}), "field `missed_function.0`: must be the index"),
        (lambda row: row.update(missed_function={"2": ["fly"]}), "field `missed_function.2`: names the function 'fly'"),
        (lambda row: row.update(initial_config=3), "field `initial_config`: must be an object"),
        (lambda row: row["initial_config"].update(GorillaFileSystem={"root": {}}), "cannot load its initial state"),
    ],
)
def test_a_broken_row_is_named(tmp_path, change, says):
    with pytest.raises(TaskFileError) as error:
        broken_folder(tmp_path, change).load()
    assert says in str(error.value)
    assert "line 2" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda row: row.pop("ground_truth") and None, "line 2: field `ground_truth`: is missing"),
        (lambda row: row["ground_truth"][0].append(3), "line 2: field `ground_truth[0][1]`: must be a string"),
        (lambda row: row["ground_truth"][0].append("exit()"), "line 2: field `ground_truth[0][1]`: 'exit()' calls"),
        (lambda row: "3", "line 2: field `(the line)`: must be an object"),
    ],
)
def test_broken_ground_truth_is_named(tmp_path, change, says):
    with pytest.raises(TaskFileError) as error:
        broken_folder(tmp_path, change, answers=True).load()
    assert says in str(error.value)
    assert "possible_answer" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    shutil.copy(data_folder() / "BFCL_v4_multi_turn_base.json", tmp_path)
    with pytest.raises(FileNotFoundError, match="possible_answer"):
        BFCLTasks(folder=tmp_path).load()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"category": "simple"}, "category must be one or several of base, miss_func"),
        ({"category": []}, "category must be one or several of"),
        ({"category": ["base", "base"]}, "each once"),
        ({"subset": "dev"}, "subset must be one of all, train"),
        ({"train_fraction": 0.9, "validation_fraction": 0.2}, "add up to at most 1"),
        ({"train_fraction": -0.1}, "at least 0"),
        ({"distractors": -1}, "distractors is a number of functions"),
    ],
)
def test_arguments_that_make_no_sense(arguments, says):
    with pytest.raises(ValueError, match=says):
        BFCLTasks(**arguments)
