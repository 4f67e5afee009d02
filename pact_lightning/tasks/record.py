"""Wire format of task files: a task as one JSON object.

:func:`task_from_json` reads a record and finds all mistakes in it, :func:`task_to_json` writes one, and
:func:`check_task` holds tasks of other sources to the same rules. ``fields`` declares the fields.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pact_lightning.environments.protocol import close_environment
from pact_lightning.traces.segmentation import segment_reasoning
from pact_lightning.types.prompt import EnvironmentSpec, PromptView, UserTurn, as_messages
from pact_lightning.types.task import Reference, SubAnswer, Task
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trace import Chunk, ChunkType, ExpertTrace, ExpertTurn, TurnPattern
from pact_lightning.utils.errors import FAILURES, TaskFieldError, failure_reason
from pact_lightning.utils.table_nulls import without_nulls, without_nulls_in_arguments, without_nulls_in_tool


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
        record: A JSON value with the fields of :class:`pact_lightning.tasks.fields.TaskRecord`. Without ``tools``, the
            environment is made and asked for its own. A trace turn gives its reasoning as ``chunks`` or as one string
            ``reasoning``, which is then segmented by rule.
        environment_tools: Tools of the environments asked so far; pass the same object for all tasks of a source.

    Raises:
        TaskFieldError: A field is missing, unknown or wrong. The error names the first one, its attribute ``further``
            holds the others.
    """
    from pact_lightning.tasks.fields import check_fields, raise_all

    check_fields(record)
    if "tools" not in record:
        spec = EnvironmentSpec(**record["environment"])
        record = {**record, "tools": (environment_tools or EnvironmentTools()).of(spec)}
        check_fields(record)
        # A tool that a later user turn brings is not there from the start.
        later = {tool["function"]["name"] for turn in record.get("follow_ups", []) for tool in turn.get("tools", [])}
        record["tools"] = [tool for tool in record["tools"] if tool["function"]["name"] not in later]
    record = _without_null_arguments(record)
    raise_all(_cross_mistakes(record))
    return _task(record)


def without_table_nulls(record: Any) -> Any:
    """Take the nulls with which a table fills up objects out of a record, before it is read.

    A field that is null counts as absent. Tools' schemas keep the nulls that are meant
    (:func:`~pact_lightning.utils.table_nulls.without_nulls_in_tool`); ``environment.init_args`` and ``metadata``, of
    which nothing is known, keep all; so do calls' arguments, until the tools are known.

    Args:
        record: A JSON value.
    """
    if not isinstance(record, Mapping):
        return record
    kept = ("tools", "arguments", "init_args", "metadata")
    found: dict[str, Any] = without_nulls(record, kept, ("id", "messages", "role", "content", "environment"))
    follow_ups = found.get("follow_ups")
    for holder in (found, *(follow_ups if isinstance(follow_ups, list) else ())):
        if isinstance(holder, dict) and isinstance(holder.get("tools"), list):
            tools = holder["tools"]
            holder["tools"] = [without_nulls_in_tool(tool) if isinstance(tool, Mapping) else tool for tool in tools]
    return found


def check_task(task: Task) -> None:
    """Check a task that was not read from a record.

    Args:
        task: The task.

    Raises:
        TaskFieldError: Its record would not be a sound one.
    """
    from pact_lightning.tasks.fields import check_fields, raise_all  # pydantic takes a while

    record = task_to_json(task)
    check_fields(record)
    raise_all(_cross_mistakes(record))


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
    except FAILURES as error:  # the user's code: any failure is this field's
        problem = f"is missing, and {spec.class_path} cannot list its own tools: {failure_reason(error)}"
        raise TaskFieldError("tools", problem) from error
    if not all(isinstance(tool, Mapping) for tool in tools):
        problem = f"is left out, and the `tools` of {spec.class_path} are not a list of schemas in OpenAI format"
        raise TaskFieldError("tools", problem)
    return [dict(tool) for tool in tools]


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


def _without_null_arguments(record: Mapping[str, Any]) -> dict[str, Any]:
    """Take the nulls of a table out of the arguments of all calls, as far as the tools' schemas do not ask for them."""
    listed = [*record["tools"], *(tool for turn in record.get("follow_ups", []) for tool in turn.get("tools", []))]
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in listed}

    def cleaned(holder: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **holder,
            "calls": [
                {**call, "arguments": without_nulls_in_arguments(call["arguments"], schemas.get(call["name"]))[0]}
                for call in holder["calls"]
            ],
        }

    found = dict(record)
    reference, trace = record.get("reference"), record.get("trace")
    if reference is not None and "calls" in reference:
        found["reference"] = cleaned(reference)
    if trace is not None:
        found["trace"] = {**trace, "turns": [cleaned(turn) if "calls" in turn else turn for turn in trace["turns"]]}
    return found


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
