"""Fields of a task record: pydantic models, and our sentences for the mistakes that they find.

``docs/task.schema.json`` is generated from :class:`TaskRecord`.
"""

from collections.abc import Iterator
from difflib import get_close_matches
from itertools import islice
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from pact_lightning.tasks.hints import hint
from pact_lightning.tasks.parameters import parameters_mistake
from pact_lightning.types.trace import ChunkType, TurnPattern
from pact_lightning.utils.errors import TaskFieldError, shortened

_JsonObject = dict[str, Any]
_NotEmpty = Annotated[str, Field(min_length=1)]
_MOST = 100
"""Mistakes reported of one record; a record that has more is no attempt at a task."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


def _is_schema(parameters: dict[str, Any]) -> dict[str, Any]:
    if mistake := parameters_mistake(parameters):
        # Without a format: the text is the file's.
        raise PydanticCustomError("parameters", "{mistake}", {"mistake": mistake})
    return parameters


class MessageRecord(_Record):
    """A message in OpenAI format; further fields are kept."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "user"]
    content: str


class FunctionRecord(_Record):
    """The function of a tool; further fields are kept."""

    model_config = ConfigDict(extra="allow")

    name: _NotEmpty
    parameters: Annotated[_JsonObject, AfterValidator(_is_schema)]
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
            raise PydanticCustomError("follow_up", "must have a content or tools")
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
            raise PydanticCustomError("reasoning", "has both `reasoning` and `chunks`; keep one of them")
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


def _in_order(messages: list[MessageRecord]) -> list[MessageRecord]:
    if not messages or messages[-1].role != "user":
        raise PydanticCustomError("messages", "must end with a user message")
    late = next((index for index, message in enumerate(messages) if index and message.role == "system"), None)
    if late is not None:
        problem = "may have one system message, in front of all others, but message {late} is one; join them"
        raise PydanticCustomError("messages", problem, {"late": late})
    return messages


class TaskRecord(_Record):
    """One line of a task file.

    Beyond this schema: messages end with a user message, and none but the first is a system message; tools' parameters
    are JSON Schema; tool names are unique; reference and trace name tools of the
    task; a trace turn has one response per call; ids are unique within a file.
    """

    model_config = ConfigDict(
        title="A task of pact-lightning", json_schema_extra={"$schema": "https://json-schema.org/draft/2020-12/schema"}
    )

    id: _NotEmpty
    """Unique within the file."""
    messages: Annotated[list[MessageRecord], AfterValidator(_in_order)] = Field(json_schema_extra={"minItems": 1})
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


def check_fields(record: Any) -> None:
    """Check every field of a record on its own.

    Args:
        record: A JSON value.

    Raises:
        TaskFieldError: A field is missing, unknown or wrong.
    """
    try:
        TaskRecord.model_validate(record)
    except ValidationError as error:
        mistakes = list(map(_field_mistake, error.errors(include_url=False)))
        if mistakes and (found := hint(record)):
            mistakes[0] = TaskFieldError(mistakes[0].field, mistakes[0].problem + found)
        raise_all(iter(mistakes))


def raise_all(mistakes: Iterator[TaskFieldError]) -> None:
    """Raise the first mistake, with the others as its ``further``; return where there is none."""
    found = list(islice(mistakes, _MOST))
    if found:
        found[0].further = tuple(found[1:])
        raise found[0]


_PROBLEMS = {
    "missing": "is missing",
    "extra_forbidden": "is not a known field{nearest}; known here: {known}",
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
    known = list(_model_at(loc[:-1]).model_fields) if kind == "extra_forbidden" else []
    near = get_close_matches(str(loc[-1]), known, n=1) if known else []
    problem = _PROBLEMS.get(kind, "{message}").format(
        message=error["msg"],
        known=", ".join(known),
        nearest=f" (did you mean `{near[0]}`?)" if near else "",
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
