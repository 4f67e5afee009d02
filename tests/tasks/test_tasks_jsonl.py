"""The package's own task files: what is read comes back, and what is wrong is named."""

import copy
import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pact_lightning.tasks.jsonl import JsonlTasks, write_jsonl
from pact_lightning.tasks.parameters import parameters_mistake
from pact_lightning.tasks.record import task_from_json, task_to_json
from pact_lightning.traces.segmentation import segment_reasoning
from pact_lightning.types.prompt import EnvironmentSpec, PromptView
from pact_lightning.types.task import Reference, SubAnswer, Task, TaskSource
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trace import Chunk, ChunkType, ExpertTrace, ExpertTurn, TurnPattern
from pact_lightning.utils.errors import TaskFieldError, TaskFileError

RECORD = {
    "id": "t1",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How old is the town?"}],
    "tools": [{"type": "function", "function": {"name": "age", "description": "", "parameters": {"type": "object"}}}],
    "environment": {"class_path": "some.module.Class", "init_args": {"a": 1}},
    "reference": {
        "answer": "800",
        "calls": [{"name": "age", "arguments": {"of": "town"}}],
        "sub_answers": [{"tool": "age", "answer": "800"}],
    },
    "trace": {
        "turns": [
            {
                "chunks": [{"text": "I need the age.\n", "type": "task_restate"}, {"text": "The tool has it."}],
                "calls": [{"name": "age", "arguments": {"of": "town"}}],
                "responses": ["800"],
                "pattern": "initial_attempt",
            }
        ],
        "final": {"reasoning": "It is 800.", "answer": "<answer>800</answer>"},
    },
}


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def changed(path, value):
    """The record with the value at ``path`` replaced, or removed when the value is ``...``."""
    record = copy.deepcopy(RECORD)
    *parents, last = path
    target = record
    for key in parents:
        target = target[key]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return record


def test_every_field_is_read(tmp_path):
    source = JsonlTasks(write(tmp_path / "tasks.jsonl", RECORD))
    assert isinstance(source, TaskSource)
    (task,) = source.load()
    call = ToolCall(name="age", arguments={"of": "town"})
    assert task.id == "t1"
    assert [message["role"] for message in task.prompt.messages] == ["system", "user"]
    assert task.prompt.tool_names == ("age",)
    assert task.prompt.environment == EnvironmentSpec("some.module.Class", {"a": 1})
    assert task.reference == Reference("800", (call,), (SubAnswer("age", "800"),))
    assert task.trace is not None
    (turn,) = task.trace.turns
    assert turn.chunks == (Chunk("I need the age.\n", ChunkType.TASK_RESTATE), Chunk("The tool has it."))
    assert (turn.calls, turn.responses, turn.pattern) == ((call,), ("800",), TurnPattern.INITIAL_ATTEMPT)
    assert task.trace.final is not None
    assert task.trace.final.reasoning == "It is 800."
    assert task.trace.final.answer == "<answer>800</answer>"


def test_a_plain_reasoning_string_is_segmented():
    reasoning = 'The user wants an age.\n\nI will call age.\n\n{"name": "age", "arguments": {"of": "town"}}'
    turn = {**RECORD["trace"]["turns"][0], "reasoning": reasoning}
    del turn["chunks"]
    read = task_from_json(changed(["trace", "turns"], [turn])).trace.turns[0]
    assert read.chunks == segment_reasoning(reasoning, read.calls)
    assert read.reasoning == reasoning
    assert len(read.chunks) > 1
    assert ChunkType.EXPLICIT_CALL_PREVIEW in {chunk.type for chunk in read.chunks}


def test_reference_trace_and_init_args_may_be_left_out():
    record = {key: RECORD[key] for key in ("id", "messages", "tools")} | {"environment": {"class_path": "a.B"}}
    task = task_from_json(record)
    assert task.reference == Reference()
    assert task.trace is None
    assert task.prompt.environment.init_args == {}
    assert task_from_json({**record, "reference": None, "trace": None}) == task


@pytest.mark.parametrize(
    ("path", "value", "field", "problem"),
    [
        (["id"], ..., "id", "is missing"),
        (["id"], 3, "id", "must be a string, got int"),
        (["id"], "", "id", "must not be empty"),
        (["ids"], 1, "ids", "is not a known field"),
        (["messages"], [], "messages", "must end with a user message"),
        (["messages"], RECORD["messages"][:1], "messages", "must end with a user message"),
        (["messages", 0, "role"], "assistant", "messages[0].role", "must be system or user, got 'assistant'"),
        (["messages", 1, "content"], None, "messages[1].content", "must be a string"),
        (["messages", 1], "hi", "messages[1]", "must be an object, got str"),
        (["tools"], {}, "tools", "must be a list, got dict"),
        (["tools", 0, "function"], ..., "tools[0].function", "is missing"),
        (["tools", 0, "function", "name"], ..., "tools[0].function.name", "is missing"),
        (["tools", 0, "function", "parameters"], ..., "tools[0].function.parameters", "is missing"),
        (["tools"], RECORD["tools"] * 2, "tools[1].function.name", "listed twice"),
        (["environment"], ..., "environment", "is missing"),
        (["environment", "class_path"], "Class", "environment.class_path", "must be an import path"),
        (
            ["environment", "args"],
            {},
            "environment.args",
            "is not a known field (did you mean `init_args`?)",
        ),
        (["reference", "calls", 0, "name"], "agge", "reference.calls", "names the tool 'agge'"),
        (["reference", "calls", 0, "arguments"], "{}", "reference.calls[0].arguments", "must be an object"),
        (["reference", "calls", 0, "parameters"], {}, "reference.calls[0].parameters", "is not a known field"),
        (["reference", "answer"], 800, "reference.answer", "must be a string, got int"),
        (["reference", "sub_answers", 0, "tool"], "x", "reference.sub_answers[0].tool", "names the tool 'x'"),
        (["trace", "turns", 0, "calls", 0, "name"], "x", "trace.turns", "names the tool 'x'"),
        (["trace", "turns", 0, "calls"], [], "trace.turns", "must call a tool"),
        (["trace", "turns", 0, "responses"], [], "trace.turns", "1 calls but 0 responses"),
        (["trace", "turns", 0, "responses", 0], {}, "trace.turns[0].responses[0]", "must be a string, got dict"),
        (["trace", "turns", 0, "answer"], "800", "trace.turns[0].answer", "is not a known field"),
        (["trace", "turns", 0, "pattern"], "odd", "trace.turns[0].pattern", "is 'odd', must be one of initial_attempt"),
        (["trace", "turns", 0, "chunks", 0, "type"], "odd", "trace.turns[0].chunks[0].type", "is 'odd'"),
        (["trace", "turns", 0, "reasoning"], "r", "trace.turns[0]", "has both `reasoning` and `chunks`"),
        (["trace", "final", "answer"], ..., "trace.final.answer", "is missing"),
        (["trace", "final", "calls"], [], "trace.final.calls", "is not a known field"),
        (["metadata"], [], "metadata", "must be an object"),
    ],
)
def test_what_is_wrong_is_named_by_file_line_and_field(tmp_path, path, value, field, problem):
    file = write(tmp_path / "tasks.jsonl", {**RECORD, "id": "good"}, "", changed(path, value))
    with pytest.raises(TaskFileError) as caught:
        JsonlTasks(file).load()
    assert (caught.value.path, caught.value.line, caught.value.field) == (file, 3, field)
    assert str(caught.value).startswith(f"{file}, line 3: field `{field}`: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_lines_and_repeated_ids_are_named(tmp_path):
    with pytest.raises(TaskFileError, match=r"tasks.jsonl, line 2: is not valid JSON: .* at character 5"):
        JsonlTasks(write(tmp_path / "tasks.jsonl", RECORD, '{"id"')).load()
    with pytest.raises(TaskFileError, match="line 1: field `\\(the line\\)`: must be an object, got list"):
        JsonlTasks(write(tmp_path / "tasks.jsonl", [])).load()
    with pytest.raises(TaskFileError, match="line 3: field `id`: 't1' is already the id of line 1"):
        JsonlTasks(write(tmp_path / "tasks.jsonl", RECORD, {**RECORD, "id": "t2"}, RECORD)).load()


def test_limit_blank_lines_and_compressed_files(tmp_path):
    records = [{**RECORD, "id": f"t{index}"} for index in range(4)]
    file = write(tmp_path / "tasks.jsonl", "", records[0], "   ", *records[1:], "")
    assert [task.id for task in JsonlTasks(file).load()] == ["t0", "t1", "t2", "t3"]
    assert [task.id for task in JsonlTasks(file, limit=2).load()] == ["t0", "t1"]
    assert JsonlTasks(file, limit=0).load() == []
    with pytest.raises(ValueError, match="limit is a number of tasks"):
        JsonlTasks(file, limit=-1)
    packed = tmp_path / "tasks.jsonl.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert JsonlTasks(str(packed)).load() == JsonlTasks(file).load()
    with pytest.raises(FileNotFoundError):
        JsonlTasks(tmp_path / "none.jsonl").load()


# No surrogates: they are no text, so no UTF-8 file can hold them.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
json_values = st.recursive(st.none() | st.booleans() | st.integers() | texts, lambda inner: st.lists(inner, max_size=2))
objects = st.dictionaries(texts, json_values, max_size=2)
calls = st.builds(ToolCall, name=st.sampled_from(["a", "b"]), arguments=objects)
chunks = st.lists(st.builds(Chunk, texts, st.sampled_from(ChunkType)), max_size=3).map(tuple)


@st.composite
def turns(draw):
    turn_calls = tuple(draw(st.lists(calls, min_size=1, max_size=2)))
    responses = tuple(draw(texts) for _ in turn_calls)
    return ExpertTurn(draw(chunks), turn_calls, responses, draw(st.sampled_from(TurnPattern)))


finals = st.none() | st.builds(ExpertTurn, chunks=chunks, pattern=st.just(TurnPattern.FINAL_ANSWER_TURN), answer=texts)
traces = st.builds(ExpertTrace, st.lists(turns(), max_size=2).map(tuple), finals, texts)


@st.composite
def tasks(draw):
    # A null in the place of a keyword is a table's padding, and is not read back; what is no schema is refused.
    sound = objects.filter(lambda schema: "null" not in json.dumps(schema) and parameters_mistake(schema) is None)
    schemas = tuple({"type": "function", "function": {"name": n, "parameters": draw(sound)}} for n in ("a", "b"))
    prompt = PromptView(
        id=draw(texts.filter(bool)),
        messages=({"role": "user", "content": draw(texts)},),
        tools=schemas,
        environment=EnvironmentSpec("a.B", draw(objects)),
    )
    sub_answers = st.lists(st.builds(SubAnswer, st.sampled_from(["a", "b"]), texts), max_size=2).map(tuple)
    reference = Reference(draw(st.none() | texts), tuple(draw(st.lists(calls, max_size=2))), draw(sub_answers))
    return Task(prompt, reference, draw(st.none() | traces), draw(texts), draw(objects))


@settings(max_examples=40, deadline=None)
@given(st.lists(tasks(), max_size=3, unique_by=lambda task: task.id))
def test_what_is_written_is_read_back_equal(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("tasks") / "tasks.jsonl"
    write_jsonl(path, written)
    assert list(JsonlTasks(path).load()) == written
    for task in written:
        record = json.loads(json.dumps(task_to_json(task)))
        assert task_to_json(task_from_json(record)) == record


@pytest.mark.parametrize("record", [None, 3, "x", [], {}])
def test_what_is_no_task_is_refused(record):
    with pytest.raises(TaskFieldError):
        task_from_json(record)
