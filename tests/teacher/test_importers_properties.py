"""Whatever a record holds, it is imported or told; what is written in OpenAI's format comes back."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_records import openai_record
from test_importers import openai, sharegpt, toolrl
from test_importers_formats import FORMATS as WRITTEN

from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.tasks.record import task_from_json, task_to_json
from pact_lightning.teacher.build import BuildOptions, BuildReport, build_tasks
from pact_lightning.teacher.importers.conversation import Conversation, RecordError
from pact_lightning.teacher.importers.formats import FORMATS, read_conversation
from pact_lightning.teacher.importers.reading import Place, Record
from pact_lightning.traces.hard_turns import segment_trace
from pact_lightning.traces.segmentation import segment_reasoning
from pact_lightning.types.prompt import EnvironmentSpec, PromptView, UserTurn
from pact_lightning.types.task import Reference, Task
from pact_lightning.types.trace import ExpertTrace, ExpertTurn, TurnPattern, flatten_calls

BUNDLED = BundledTasks("validation", 12).load()
TEXT = st.text(max_size=30).filter(lambda text: text.isprintable())
LEAF = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT)
TAGS = [f"<{mark}{tag}>" for tag in ("think", "tool_call", "response", "obs", "user", "tools") for mark in ("", "/")]
MAKERS = [openai, sharegpt, toolrl, *(make for make, _ in WRITTEN)]
PIECES = [*TAGS, '{"name": "add", "arguments": {}}', '[{"name": "add", "results": 1}]', "<tool_response>", "x"]
PIECES += ["[add(a=1)]", "[add(", "system", "assistant", "tool", "tool_call", "tool_use"]
TAGGED = st.lists(st.sampled_from(PIECES)).map(" ".join)
KEYS = st.sampled_from(
    [
        *(
            "messages",
            "conversations",
            "input",
            "output",
            "items",
            "answers",
            "role",
            "from",
            "type",
            "value",
            "content",
        ),
        *("name", "arguments", "args", "function", "id", "tool_calls", "function_call", "text", "thinking", "summary"),
        *("data", "tools", "parameters", "properties"),
    ]
)
JSON = st.recursive(
    LEAF | TAGGED,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | TEXT, inner, max_size=4),
    max_leaves=20,
)


def paths(value, path=()):
    """Every place in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*path, key))


def put(record, path, value):
    if not path:
        return value
    record = copy.deepcopy(record)
    target = record
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return record


def imported_or_told(record, name="auto"):
    """The invariant of every importer."""
    told = None
    try:
        conversation = read_conversation(record, name)
    except RecordError as error:
        told = error
    if told is not None:
        assert all((told.reason, told.field, told.problem))
        return
    assert isinstance(conversation, Conversation)
    dialogue = conversation.dialogue
    assert dialogue.messages[-1]["role"] == "user"
    trace = ExpertTrace(dialogue.turns, dialogue.final)
    assert trace.replies == len(dialogue.follow_ups)
    json.dumps([flatten_calls(trace.turns), conversation.tools], allow_nan=False).encode()


@given(record=JSON, name=st.sampled_from(["auto", *FORMATS]))
@settings(max_examples=400, deadline=None)
def test_any_json_is_imported_or_told(record, name):
    imported_or_told(record, name)


@given(data=st.data(), make=st.sampled_from(MAKERS))
@settings(max_examples=600, deadline=None)
def test_a_mutated_record_is_imported_or_told(data, make):
    record = make()
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(paths(record))))
        record = put(record, path, data.draw(JSON))
        if not isinstance(record, dict):
            break
    imported_or_told(record)


@given(data=st.data(), make=st.sampled_from([sharegpt, toolrl]))
@settings(max_examples=400, deadline=None)
def test_text_with_any_tags_is_imported_or_told(data, make):
    record = make()
    texts = [path for path in paths(record) if path and path[-1] in ("value", "input", "output", "instruction")]
    path = data.draw(st.sampled_from(texts))
    original = record
    for key in path:
        original = original[key]
    cut = data.draw(st.integers(0, len(original)))
    imported_or_told(put(record, path, original[:cut] + data.draw(TAGGED) + original[cut:]))


CALL = st.fixed_dictionaries(
    {"name": st.sampled_from(["add", "find it"]), "arguments": st.dictionaries(TEXT, JSON, max_size=3)}
)
SAYS = TEXT.filter(str.strip)


@st.composite
def tasks(draw):
    follow_ups = tuple(UserTurn(text) for text in draw(st.lists(SAYS, max_size=2)))
    turns = []
    for index in range(len(follow_ups) + 1):
        for calls in draw(st.lists(st.lists(CALL, min_size=1, max_size=3), min_size=1, max_size=2)):
            turns.append(raw_turn(draw(TEXT), tuple(calls), tuple(draw(TEXT) for _ in calls)))
        if index < len(follow_ups):
            turns.append(replace(raw_turn(draw(TEXT)), reply=draw(SAYS)))
    final = replace(raw_turn(draw(TEXT)), answer=draw(SAYS), pattern=TurnPattern.FINAL_ANSWER_TURN)
    schemas = [{"name": name, "description": "", "parameters": {"type": "object"}} for name in ("add", "find it")]
    tools = tuple({"type": "function", "function": schema} for schema in schemas)
    messages = ({"role": "system", "content": draw(TEXT)}, {"role": "user", "content": draw(TEXT)})
    prompt = PromptView("t", messages, tools, EnvironmentSpec("some.Class", {"a": 1}), follow_ups)
    trace = ExpertTrace(tuple(turns), draw(st.sampled_from([None, final])) if not follow_ups else final)
    task = Task(prompt, Reference(draw(st.none() | TEXT), (draw(CALL),)), trace, "kind", {"b": 2})
    return replace(task, trace=segment_trace(prompt, trace, failed=[False] * len(turns))[0])


def raw_turn(reasoning, calls=(), responses=()):
    reasoning = reasoning if reasoning.strip() else ""  # white space alone counts as none
    return ExpertTurn(segment_reasoning(reasoning, calls), calls, responses)


@given(task=tasks())
@settings(max_examples=200, deadline=None)
def test_a_task_survives_openais_format(task):
    record = json.loads(json.dumps(openai_record(task)))
    conversation = read_conversation(record)
    dialogue = conversation.dialogue
    assert dialogue.notes == {}
    prompt = PromptView(
        conversation.id, dialogue.messages, conversation.tools, conversation.environment, dialogue.follow_ups
    )
    trace = ExpertTrace(dialogue.turns, dialogue.final)
    again = Task(prompt, conversation.reference, trace, conversation.kind, conversation.metadata)
    assert again == task


@pytest.mark.parametrize("task", BUNDLED, ids=lambda task: task.id)
def test_the_bundled_experts_survive_openais_format(task):
    dialogue = read_conversation(json.loads(json.dumps(openai_record(task)))).dialogue
    assert [(turn.reasoning, turn.calls, turn.responses) for turn in dialogue.turns] == [
        (turn.reasoning, turn.calls, turn.responses) for turn in task.trace.turns
    ]
    assert (dialogue.final.reasoning, dialogue.final.answer) == (task.trace.final.reasoning, task.trace.final.answer)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_mutated_records_are_all_kept_or_told(data):
    """The whole of ``traces build``: import, replay in a real environment, segmentation, check."""
    original = data.draw(st.sampled_from(BUNDLED))
    good = openai_record(original)
    path = data.draw(st.sampled_from([path for path in paths(good) if path and path[0] != "environment"]))
    records = [put(good, path, data.draw(JSON)), good]
    places = [Record(Place(Path("in.jsonl"), number), record) for number, record in enumerate(records, start=1)]
    report = BuildReport()
    tasks = list(build_tasks(places, BuildOptions(environment=original.prompt.environment), report))
    assert report.records == len(tasks) + len(report.problems) == 2
    assert report.kept_by.total() == len(tasks) >= 1
    assert all(
        problem.reason and problem.text and str(problem).startswith("in.jsonl, line ") for problem in report.problems
    )
    for task in tasks:
        assert task_from_json(json.loads(json.dumps(task_to_json(task)))) == task
