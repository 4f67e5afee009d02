"""Wire format of task files: a task as one JSON object.

:class:`TaskRecord` declares the fields; ``docs/task.schema.json`` is generated from it. :func:`task_from_json` reads a
record and finds all mistakes in it, :func:`task_to_json` writes one. :func:`check_task` holds tasks of other sources to
the same rules.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from pact_lightning.environments.protocol import close_environment
from pact_lightning.traces.segmentation import segment_reasoning
from pact_lightning.types.prompt import EnvironmentSpec, PromptView, UserTurn, as_messages
from pact_lightning.types.task import Reference, SubAnswer, Task
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trace import Chunk, ChunkType, ExpertTrace, ExpertTurn, TurnPattern
from pact_lightning.utils.errors import TaskFieldError, shortened

_JsonObject = dict[str, Any]
_NotEmpty = Annotated[str, Field(min_length=1)]
_MOST = 100
"""Mistakes reported of one record; a record that has more is no attempt at a task."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class MessageRecord(_Record):
    """A message in OpenAI format; further fields are kept."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "user"]
    content: str


class FunctionRecord(_Record):
    """The function of a tool; further fields are kept."""

    model_config = ConfigDict(extra="allow")

    name: _NotEmpty
    parameters: _JsonObject
    """JSON Schema of the arguments."""


class ToolRecord(_Record):
    """A tool in OpenAI format; further fields are kept."""

    model_config = ConfigDict(extra="allow")

    function: FunctionRecord


class EnvironmentRecord(_Record):
    """The environment in which the tools run."""

    class_path: Annotated[str, Field(pattern=r"\.")]
    """Import path of a class that follows pact_lightning.Environment."""
    init_args: _JsonObject = {}
    """Its constructor arguments."""


class FollowUpRecord(_Record):
    """A further user turn, with words, tools or both; it is released when the policy answers the one before."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"content": {"minLength": 1}}},
                {"properties": {"tools": {"minItems": 1}}, "required": ["tools"]},
            ]
        }
    )

    content: str
    """The user's words."""
    tools: list[ToolRecord] = []
    """Tools that the policy has from here on, beside those it had."""

    @model_validator(mode="after")
    def _brings_something(self) -> Self:
        if not self.content and not self.tools:
            raise PydanticCustomError("follow_up", "must bring a content or tools")
        return self


class CallRecord(_Record):
    """One tool call."""

    name: str
    """Name of one of the task's tools."""
    arguments: _JsonObject
    """Arguments by name."""


class SubAnswerRecord(_Record):
    """An expected answer, to be found in a response of one tool."""

    tool: str
    answer: str


class ReferenceRecord(_Record):
    """The solution of the task; used by rewards and metrics, never shown to the policy."""

    answer: str | None = None
    """The final answer."""
    calls: list[CallRecord] = []
    """Tool calls that solve the task, in order."""
    sub_answers: list[SubAnswerRecord] = []


class ChunkRecord(_Record):
    """A piece of reasoning."""

    text: str
    """The piece, separators included."""
    type: Annotated[ChunkType, Field(strict=False)] = ChunkType.OTHER


class _ReasonedRecord(_Record):
    model_config = ConfigDict(json_schema_extra={"not": {"required": ["reasoning", "chunks"]}})

    reasoning: str = ""
    """The reasoning as one text; it is cut into chunks by rule."""
    chunks: list[ChunkRecord] = []
    """The reasoning cut into pieces; their texts joined are the reasoning."""

    @model_validator(mode="after")
    def _one_reasoning(self) -> Self:
        if {"reasoning", "chunks"} <= self.model_fields_set:
            raise PydanticCustomError("reasoning", "gives both `reasoning` and `chunks`; give one of them")
        return self


class CallTurnRecord(_ReasonedRecord):
    """An expert turn that calls tools."""

    calls: list[CallRecord] = Field(json_schema_extra={"minItems": 1})
    responses: list[str]
    """One tool response per call."""
    pattern: Annotated[TurnPattern, Field(strict=False)] = TurnPattern.OTHER

    @model_validator(mode="after")
    def _one_response_per_call(self) -> Self:
        calls, responses = len(self.calls), len(self.responses)
        if not calls:
            raise PydanticCustomError("turn", "must call a tool and give no answer; put the answer in `final`")
        if calls != responses:
            problem = "has {calls} calls but {responses} responses; give one response per call"
            raise PydanticCustomError("turn", problem, {"calls": calls, "responses": responses})
        return self


class ReplyTurnRecord(_ReasonedRecord):
    """An expert turn that replies to a user turn which a follow-up follows."""

    reply: str
    pattern: Annotated[TurnPattern, Field(strict=False)] = TurnPattern.OTHER


class FinalTurnRecord(_ReasonedRecord):
    """The expert's final answer turn, for supervised warm-up only."""

    answer: str
    """The text after the reasoning."""


_TURNS = {kind.__name__: kind for kind in (CallTurnRecord, ReplyTurnRecord)}
_Turn = Annotated[
    Annotated[CallTurnRecord, Tag("CallTurnRecord")] | Annotated[ReplyTurnRecord, Tag("ReplyTurnRecord")],
    Discriminator(lambda turn: "ReplyTurnRecord" if isinstance(turn, dict) and "reply" in turn else "CallTurnRecord"),
]


class TraceRecord(_Record):
    """An expert's solution; it joins only after the rollouts exist."""

    turns: list[_Turn]
    """The turns that call tools, and those that reply to a user turn before the last; the final answer is not among
    them."""
    final: FinalTurnRecord | None = None
    source: str = ""
    """The trace's origin, for reports."""


def _ends_with_user(messages: list[MessageRecord]) -> list[MessageRecord]:
    if not messages or messages[-1].role != "user":
        raise PydanticCustomError("messages", "must end with a user message")
    return messages


class TaskRecord(_Record):
    """One line of a task file.

    Beyond this schema: messages end with a user message; tool names are unique; reference and trace name tools of the
    task; a trace turn has one response per call; ids are unique within a file.
    """

    model_config = ConfigDict(
        title="A task of pact-lightning", json_schema_extra={"$schema": "https://json-schema.org/draft/2020-12/schema"}
    )

    id: _NotEmpty
    """Unique within the file."""
    messages: Annotated[list[MessageRecord], AfterValidator(_ends_with_user)] = Field(json_schema_extra={"minItems": 1})
    """The prompt: an optional leading system message, then user messages."""
    tools: list[ToolRecord] = []
    """The tools; left out, the environment is asked for its own when the file is read."""
    environment: EnvironmentRecord
    follow_ups: list[FollowUpRecord] = []
    """Further user turns, each released when the policy answers the one before."""
    reference: ReferenceRecord | None = None
    trace: TraceRecord | None = None
    kind: str = ""
    """A free label by which results are grouped."""
    metadata: _JsonObject = {}
    """Facts that nothing in the package depends on."""


class EnvironmentTools:
    """Tools of environments, each of which is asked once."""

    def __init__(self) -> None:
        self._known: dict[str, list[dict[str, Any]]] = {}

    def of(self, spec: EnvironmentSpec) -> list[dict[str, Any]]:
        """Return the tools of an environment as it is made, before any reset.

        Args:
            spec: The environment.

        Raises:
            TaskFieldError: It cannot be made, or cannot give its tools.
        """
        key = f"{spec.class_path} {json.dumps(spec.init_args, sort_keys=True, default=repr)}"
        if key not in self._known:
            self._known[key] = _environment_tools(spec)
        return self._known[key]


def task_from_json(record: Any, environment_tools: EnvironmentTools | None = None) -> Task:
    """Read and check a task.

    Args:
        record: A JSON value with the fields of :class:`TaskRecord`. Without ``tools``, the environment is made and
            asked for its own. A trace turn gives its reasoning as ``chunks`` or as one string ``reasoning``, which is
            then segmented by rule.
        environment_tools: Tools of the environments asked so far; pass the same object for all tasks of a source.

    Raises:
        TaskFieldError: A field is missing, unknown or wrong. The error names the first one, its attribute ``further``
            holds the others.
    """
    _check_fields(record)
    if "tools" not in record:
        spec = EnvironmentSpec(**record["environment"])
        record = {**record, "tools": (environment_tools or EnvironmentTools()).of(spec)}
        _check_fields(record)
        # A tool that a later user turn brings is not there from the start.
        later = {tool["function"]["name"] for turn in record.get("follow_ups", []) for tool in turn.get("tools", [])}
        record["tools"] = [tool for tool in record["tools"] if tool["function"]["name"] not in later]
    _raise_all(_cross_mistakes(record))
    return _task(record)


def check_task(task: Task) -> None:
    """Check a task that was not read from a record.

    Args:
        task: The task.

    Raises:
        TaskFieldError: Its record would not be a sound one.
    """
    record = task_to_json(task)
    _check_fields(record)
    _raise_all(_cross_mistakes(record))


def task_to_json(task: Task) -> dict[str, Any]:
    """Return the task as one JSON object; :func:`task_from_json` gives the same task back."""
    record: dict[str, Any] = {
        "id": task.id,
        "messages": [dict(message) for message in task.prompt.messages],
        "tools": [dict(tool) for tool in task.prompt.tools],
        "environment": {
            "class_path": task.prompt.environment.class_path,
            "init_args": dict(task.prompt.environment.init_args),
        },
        "reference": {
            "answer": task.reference.answer,
            "calls": [dict(call) for call in task.reference.calls],
            "sub_answers": [{"tool": sub.tool, "answer": sub.answer} for sub in task.reference.sub_answers],
        },
    }
    if task.prompt.follow_ups:
        record["follow_ups"] = [
            {"content": turn.content, **({"tools": [dict(tool) for tool in turn.tools]} if turn.tools else {})}
            for turn in task.prompt.follow_ups
        ]
    if task.trace is not None:
        record["trace"] = _trace_to_json(task.trace)
    if task.kind:
        record["kind"] = task.kind
    if task.metadata:
        record["metadata"] = dict(task.metadata)
    return record


def _trace_to_json(trace: ExpertTrace) -> dict[str, Any]:
    record: dict[str, Any] = {"turns": []}
    for turn in trace.turns:
        deed = {"calls": [dict(call) for call in turn.calls], "responses": list(turn.responses)}
        record["turns"].append(
            {
                "chunks": _chunks_to_json(turn),
                **(deed if turn.reply is None else {"reply": turn.reply}),
                "pattern": turn.pattern.value,
            }
        )
    if trace.final is not None:
        record["final"] = {"chunks": _chunks_to_json(trace.final), "answer": trace.final.answer}
    if trace.source:
        record["source"] = trace.source
    return record


def _chunks_to_json(turn: ExpertTurn) -> list[dict[str, str]]:
    return [{"text": chunk.text, "type": chunk.type.value} for chunk in turn.chunks]


def _environment_tools(spec: EnvironmentSpec) -> list[dict[str, Any]]:
    try:
        environment = spec.build()
        try:
            tools = tuple(environment.tools)
        finally:
            close_environment(environment)
    except Exception as error:  # the user's code: any failure is this field's
        problem = f"is left out, and {spec.class_path} cannot give its own tools: {error or type(error).__name__}"
        raise TaskFieldError("tools", problem) from error
    if not all(isinstance(tool, Mapping) for tool in tools):
        problem = f"is left out, and the `tools` of {spec.class_path} are not a list of schemas in OpenAI format"
        raise TaskFieldError("tools", problem)
    return [dict(tool) for tool in tools]


def _raise_all(mistakes: Iterator[TaskFieldError]) -> None:
    found = list(islice(mistakes, _MOST))
    if found:
        found[0].further = tuple(found[1:])
        raise found[0]


def _check_fields(record: Any) -> None:
    try:
        TaskRecord.model_validate(record)
    except ValidationError as error:
        _raise_all(map(_field_mistake, error.errors(include_url=False)))


_PROBLEMS = {
    "missing": "is missing",
    "extra_forbidden": "is not a known field; known here: {known}",
    "string_type": "must be a string, got {kind}",
    "string_unicode": "holds half of a character (an unpaired surrogate escape)",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must be an import path such as `package.module.Class`",
    "list_type": "must be a list, got {kind}",
    "dict_type": "must be an object, got {kind}",
    "model_type": "must be an object, got {kind}",
    "literal_error": "must be {choices}, got {value}",
    "enum": "is {value}, must be one of {choices}",
}
"""Our sentences for pydantic's types of errors; errors of the validators above bring their own."""


def _field_mistake(error: ErrorDetails) -> TaskFieldError:
    loc, kind = error["loc"], error["type"]
    problem = _PROBLEMS.get(kind, "{message}").format(
        message=error["msg"],
        known=", ".join(_model_at(loc[:-1]).model_fields) if kind == "extra_forbidden" else "",
        kind=type(error["input"]).__name__,
        value=shortened(error["input"]),
        choices=error.get("ctx", {}).get("expected", "").replace("'", ""),
    )
    if loc[:2] == ("trace", "turns"):
        if kind == "turn":
            return TaskFieldError("trace.turns", f"trace turn {loc[2]} {problem}")
        loc = loc[:3] + loc[4:]  # without the tag of the union
    field = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc)
    return TaskFieldError(field.removeprefix(".") or "(the line)", problem)


def _model_at(loc: tuple[int | str, ...]) -> type[BaseModel]:
    model: type[BaseModel] = TaskRecord
    for step in loc:
        if isinstance(step, str):
            model = _TURNS.get(step) or _model_in(model.model_fields[step].annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner))), None)


def _cross_mistakes(record: Mapping[str, Any]) -> Iterator[TaskFieldError]:
    """Find what contradicts itself in a record whose fields are sound."""
    follow_ups = record.get("follow_ups", [])
    tools = [("tools", record["tools"])]
    tools += [(f"follow_ups[{index}].tools", turn.get("tools", [])) for index, turn in enumerate(follow_ups)]
    known: set[str] = set()
    for where, listed in tools:
        for index, tool in enumerate(listed):
            name = tool["function"]["name"]
            if name in known:
                yield TaskFieldError(f"{where}[{index}].function.name", f"tool {name!r} is listed twice")
            known.add(name)
    for where, name in _named_tools(record):
        if name not in known:
            yield TaskFieldError(where, f"names the tool {name!r}, which is not in `tools`")
            known.add(name)  # once is enough
    replies = sum("reply" in turn for turn in (record.get("trace") or {"turns": ()})["turns"])
    if replies > len(follow_ups):
        problem = f"reply {replies} times, but the task has {len(follow_ups)} follow_ups"
        yield TaskFieldError("trace.turns", f"{problem}; the reply to the last user turn belongs in `trace.final`")


def _named_tools(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    reference = record.get("reference") or {}
    for call in reference.get("calls", []):
        yield "reference.calls", call["name"]
    for index, sub_answer in enumerate(reference.get("sub_answers", [])):
        yield f"reference.sub_answers[{index}].tool", sub_answer["tool"]
    for turn in (record.get("trace") or {"turns": ()})["turns"]:
        for call in turn.get("calls", []):
            yield "trace.turns", call["name"]


def _task(record: Mapping[str, Any]) -> Task:
    """Build the task of a sound record."""
    reference, trace = record.get("reference") or {}, record.get("trace")
    return Task(
        prompt=PromptView(
            id=record["id"],
            messages=as_messages(record["messages"]),
            tools=tuple(record["tools"]),
            environment=EnvironmentSpec(**record["environment"]),
            follow_ups=tuple(
                UserTurn(turn["content"], tuple(turn.get("tools", []))) for turn in record.get("follow_ups", [])
            ),
        ),
        reference=Reference(
            answer=reference.get("answer"),
            calls=_calls(reference.get("calls", [])),
            sub_answers=tuple(SubAnswer(**sub_answer) for sub_answer in reference.get("sub_answers", [])),
        ),
        trace=None if trace is None else _trace(trace),
        kind=record.get("kind", ""),
        metadata=record.get("metadata", {}),
    )


def _trace(record: Mapping[str, Any]) -> ExpertTrace:
    final = record.get("final")
    return ExpertTrace(
        turns=tuple(map(_turn, record["turns"])),
        final=None if final is None else _turn({**final, "pattern": TurnPattern.FINAL_ANSWER_TURN}),
        source=record.get("source", ""),
    )


def _turn(record: Mapping[str, Any]) -> ExpertTurn:
    calls, reasoning = _calls(record.get("calls", [])), record.get("reasoning", "")
    chunks = [Chunk(chunk["text"], ChunkType(chunk.get("type", "other"))) for chunk in record.get("chunks", [])]
    return ExpertTurn(
        chunks=segment_reasoning(reasoning, calls) if reasoning else tuple(chunks),
        calls=calls,
        responses=tuple(record.get("responses", [])),
        pattern=TurnPattern(record.get("pattern", "other")),
        answer=record.get("answer", ""),
        reply=record.get("reply"),
    )


def _calls(records: Sequence[Mapping[str, Any]]) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(name=call["name"], arguments=call["arguments"]) for call in records)
