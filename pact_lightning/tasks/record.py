"""An environment's own tools, for tasks that do not list theirs.

A task as one JSON object, and back (the package's own format).
"""

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeVar

from pact_lightning.environments.protocol import close_environment
from pact_lightning.tasks.checks import check_task
from pact_lightning.traces.segmentation import segment_reasoning
from pact_lightning.types.prompt import EnvironmentSpec, PromptView, ToolSchema, UserTurn, as_messages
from pact_lightning.types.task import Reference, SubAnswer, Task
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trace import Chunk, ChunkType, ExpertTrace, ExpertTurn, TurnPattern
from pact_lightning.utils.errors import TaskFieldError, typed


class EnvironmentTools:
    """Asks environments for their tools, each of them once."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[ToolSchema, ...]] = {}

    def of(self, spec: EnvironmentSpec) -> tuple[ToolSchema, ...]:
        """The tools of the environment as it is made, before any reset.

        Args:
            spec: The environment.

        Raises:
            TaskFieldError: It cannot be made, or cannot give its tools.
        """
        key = f"{spec.class_path} {json.dumps(spec.init_args, sort_keys=True, default=repr)}"
        if key not in self._known:
            self._known[key] = _asked(spec)
        return self._known[key]


def _asked(spec: EnvironmentSpec) -> tuple[ToolSchema, ...]:
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
    return tools


_Choice = TypeVar("_Choice", bound=StrEnum)


def task_from_json(record: Any, environment_tools: EnvironmentTools | None = None) -> Task:
    """Reads and checks a task.

    Args:
        record: ``id, messages, environment {class_path, init_args}`` and, optionally, ``tools, follow_ups [{content,
            tools}], reference {answer, calls, sub_answers}, trace {turns, final, source}, kind, metadata``. Without
            ``tools``, the environment is made and asked for its own. A trace turn gives its reasoning as ``chunks``
            (``[{"text", "type"}]``) or as one string ``reasoning``, which is then segmented by rule.
        environment_tools: What environments have been asked already; give the same one for all tasks of a source.

    Returns:
        The task.

    Raises:
        TaskFieldError: A field is missing, unknown or wrong; the error names it.
    """
    optional = ("tools", "follow_ups", "reference", "trace", "kind", "metadata")
    _fields(record, "", ("id", "messages", "environment"), optional=optional)
    environment = record["environment"]
    _fields(environment, "environment", ("class_path",), optional=("init_args",))
    spec = EnvironmentSpec(
        typed(environment["class_path"], str, "environment.class_path"),
        typed(environment.get("init_args", {}), dict, "environment.init_args"),
    )
    follow_ups = _follow_ups(record.get("follow_ups", []))
    prompt = PromptView(
        id=typed(record["id"], str, "id"),
        messages=as_messages(_objects(record["messages"], "messages")),
        tools=_tools(record, spec, environment_tools or EnvironmentTools(), follow_ups),
        environment=spec,
        follow_ups=follow_ups,
    )
    task = Task(
        prompt=prompt,
        reference=_reference(record.get("reference")),
        trace=_trace(record.get("trace")),
        kind=typed(record.get("kind", ""), str, "kind"),
        metadata=typed(record.get("metadata", {}), dict, "metadata"),
    )
    check_task(task)
    return task


def task_to_json(task: Task) -> dict[str, Any]:
    """The task as one JSON object; :func:`task_from_json` gives the same task back."""
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
        record["follow_ups"] = [_follow_up_to_json(turn) for turn in task.prompt.follow_ups]
    if task.trace is not None:
        record["trace"] = _trace_to_json(task.trace)
    if task.kind:
        record["kind"] = task.kind
    if task.metadata:
        record["metadata"] = dict(task.metadata)
    return record


def _tools(
    record: Mapping[str, Any], spec: EnvironmentSpec, known: EnvironmentTools, follow_ups: Sequence[UserTurn]
) -> tuple[ToolSchema, ...]:
    if "tools" in record:
        return tuple(_objects(record["tools"], "tools"))
    # What a later user turn brings is not there from the start.
    later = {tool["function"]["name"] for turn in follow_ups for tool in turn.tools if _is_named(tool)}
    return tuple(tool for tool in known.of(spec) if tool["function"]["name"] not in later)


def _is_named(tool: ToolSchema) -> bool:
    return isinstance(tool.get("function"), Mapping) and isinstance(tool["function"].get("name"), str)


def _follow_ups(value: Any) -> tuple[UserTurn, ...]:
    turns = []
    for index, entry in enumerate(_objects(value, "follow_ups")):
        where = f"follow_ups[{index}]"
        _fields(entry, where, ("content",), optional=("tools",))
        content = typed(entry["content"], str, f"{where}.content")
        turns.append(UserTurn(content, tuple(_objects(entry.get("tools", []), f"{where}.tools"))))
    return tuple(turns)


def _follow_up_to_json(turn: UserTurn) -> dict[str, Any]:
    tools = {"tools": [dict(tool) for tool in turn.tools]} if turn.tools else {}
    return {"content": turn.content, **tools}


def _reference(value: Any) -> Reference:
    if value is None:
        return Reference()
    _fields(value, "reference", (), optional=("answer", "calls", "sub_answers"))
    answer = value.get("answer")
    sub_answers = []
    for index, entry in enumerate(_objects(value.get("sub_answers", []), "reference.sub_answers")):
        where = f"reference.sub_answers[{index}]"
        _fields(entry, where, ("tool", "answer"))
        sub_answers.append(
            SubAnswer(typed(entry["tool"], str, f"{where}.tool"), typed(entry["answer"], str, f"{where}.answer"))
        )
    return Reference(
        answer=None if answer is None else typed(answer, str, "reference.answer"),
        calls=_calls(value.get("calls", []), "reference.calls"),
        sub_answers=tuple(sub_answers),
    )


def _calls(value: Any, where: str) -> tuple[ToolCall, ...]:
    calls = []
    for index, entry in enumerate(_objects(value, where)):
        _fields(entry, f"{where}[{index}]", ("name", "arguments"))
        name = typed(entry["name"], str, f"{where}[{index}].name")
        calls.append(ToolCall(name=name, arguments=typed(entry["arguments"], dict, f"{where}[{index}].arguments")))
    return tuple(calls)


def _trace(value: Any) -> ExpertTrace | None:
    if value is None:
        return None
    _fields(value, "trace", ("turns",), optional=("final", "source"))
    turns = tuple(
        _turn(turn, f"trace.turns[{index}]") for index, turn in enumerate(_objects(value["turns"], "trace.turns"))
    )
    final = None
    if value.get("final") is not None:
        entry, where = value["final"], "trace.final"
        _fields(entry, where, ("answer",), optional=("reasoning", "chunks"))
        final = ExpertTurn(
            chunks=_chunks(entry, where, ()),
            pattern=TurnPattern.FINAL_ANSWER_TURN,
            answer=typed(entry["answer"], str, f"{where}.answer"),
        )
    try:
        return ExpertTrace(turns, final, typed(value.get("source", ""), str, "trace.source"))
    except ValueError as error:
        if isinstance(error, TaskFieldError):
            raise
        raise TaskFieldError("trace.turns", str(error)) from error


def _turn(value: Mapping[str, Any], where: str) -> ExpertTurn:
    if isinstance(value, dict) and "reply" in value:
        _fields(value, where, ("reply",), optional=("reasoning", "chunks", "pattern"))
        return ExpertTurn(
            chunks=_chunks(value, where, ()),
            pattern=_choice(TurnPattern, value.get("pattern", TurnPattern.OTHER), f"{where}.pattern"),
            reply=typed(value["reply"], str, f"{where}.reply"),
        )
    _fields(value, where, ("calls", "responses"), optional=("reasoning", "chunks", "pattern"))
    calls = _calls(value["calls"], f"{where}.calls")
    responses = typed(value["responses"], list, f"{where}.responses")
    return ExpertTurn(
        chunks=_chunks(value, where, calls),
        calls=calls,
        responses=tuple(typed(text, str, f"{where}.responses[{index}]") for index, text in enumerate(responses)),
        pattern=_choice(TurnPattern, value.get("pattern", TurnPattern.OTHER), f"{where}.pattern"),
    )


def _chunks(value: Mapping[str, Any], where: str, calls: Sequence[ToolCall]) -> tuple[Chunk, ...]:
    if "chunks" in value and "reasoning" in value:
        raise TaskFieldError(where, "gives both `reasoning` and `chunks`; give one of them")
    if "chunks" not in value:
        reasoning = typed(value.get("reasoning", ""), str, f"{where}.reasoning")
        return segment_reasoning(reasoning, calls) if reasoning else ()
    chunks = []
    for index, entry in enumerate(_objects(value["chunks"], f"{where}.chunks")):
        at = f"{where}.chunks[{index}]"
        _fields(entry, at, ("text",), optional=("type",))
        kind = _choice(ChunkType, entry.get("type", ChunkType.OTHER), f"{at}.type")
        chunks.append(Chunk(typed(entry["text"], str, f"{at}.text"), kind))
    return tuple(chunks)


def _trace_to_json(trace: ExpertTrace) -> dict[str, Any]:
    record: dict[str, Any] = {
        "turns": [
            {"chunks": _chunks_to_json(turn), **_deed_to_json(turn), "pattern": turn.pattern.value}
            for turn in trace.turns
        ]
    }
    if trace.final is not None:
        record["final"] = {"chunks": _chunks_to_json(trace.final), "answer": trace.final.answer}
    if trace.source:
        record["source"] = trace.source
    return record


def _deed_to_json(turn: ExpertTurn) -> dict[str, Any]:
    if turn.reply is not None:
        return {"reply": turn.reply}
    return {"calls": [dict(call) for call in turn.calls], "responses": list(turn.responses)}


def _chunks_to_json(turn: ExpertTurn) -> list[dict[str, str]]:
    return [{"text": chunk.text, "type": chunk.type.value} for chunk in turn.chunks]


def _choice(kind: type[_Choice], value: Any, where: str) -> _Choice:
    try:
        return kind(value)
    except ValueError as error:
        raise TaskFieldError(where, f"is {value!r}, must be one of {', '.join(kind)}") from error


def _objects(value: Any, where: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = typed(value, list, where)
    for index, item in enumerate(items):
        typed(item, dict, f"{where}[{index}]")
    return items


def _fields(value: Any, where: str, required: tuple[str, ...], *, optional: tuple[str, ...] = ()) -> None:
    """Checks that ``value`` is an object with the required fields and none beyond the optional ones."""
    if not isinstance(value, dict):
        raise TaskFieldError(where or "(the line)", f"must be an object, got {type(value).__name__}")
    prefix = f"{where}." if where else ""
    for name in required:
        if name not in value:
            raise TaskFieldError(prefix + name, "is missing")
    for name in value:
        if name not in required and name not in optional:
            known = ", ".join((*required, *optional))
            raise TaskFieldError(prefix + str(name), f"is not a known field; known here: {known}")
