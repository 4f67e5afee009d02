"""One row of FTRL's format (arXiv 2508.08791) as a task."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pact_lightning.tasks.record import check_task
from pact_lightning.traces.replay import trace_from_calls
from pact_lightning.types.prompt import EnvironmentSpec, Message, PromptView, as_messages
from pact_lightning.types.task import Reference, SubAnswer, Task
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trace import ExpertTrace, ExpertTurn, TurnPattern
from pact_lightning.utils.errors import TaskFieldError, needed, typed
from pact_lightning.utils.json_text import JsonTextError, parse_json

SYSTEM_PROMPT = (
    "Find what you need with the tools. Once you know the answer, reply without a tool call and put nothing but the "
    "answer between <answer> and </answer>."
)
ENVIRONMENT = "pact_lightning.CodeToolEnvironment"


@dataclass(frozen=True, slots=True)
class KnownCalls:
    """One complete line of a file of known calls.

    Attributes:
        path: The file.
        line: The line, counted from 1.
        question: Text that the row's last message must hold; may be empty.
        calls: The calls, in order.
        observations: Their responses.
    """

    path: Path
    line: int
    question: str
    calls: tuple[ToolCall, ...]
    observations: tuple[str, ...]


def ftrl_task(
    index: int,
    row: Any,
    *,
    known: KnownCalls | None = None,
    distractors: int | None = None,
    system_prompt: str | None = SYSTEM_PROMPT,
    name: str = "ftrl",
) -> Task:
    """Make a task of a row; see :class:`pact_lightning.FTRLTasks` for the fields and arguments.

    Args:
        index: The row's number, counted from 0; with ``name`` it makes the id.
        row: The row.
        known: Calls that solve it, with their responses.
        distractors: Number of tools that are kept beside the needed ones; ``None`` for all.
        system_prompt: A system message put before the row's own; ``None`` or empty for none.
        name: Start of the id.

    Raises:
        TaskFieldError: A field is missing or wrong, or the known calls are about another question.
    """
    typed(row, dict, "(the line)")
    messages: list[Message] = needed(row, "messages", list)
    if system_prompt:
        messages = [{"role": "system", "content": system_prompt}, *messages]
    tools, codes = _decoded(row, "tools", list), _codes(row)
    calls = known.calls if known is not None else _ground_truth(row)
    sub_answers = _sub_answers(_decoded(row, "unsolved_set", dict))
    if distractors is not None:
        wanted = {call["name"] for call in calls} | {sub_answer.tool for sub_answer in sub_answers}
        tools = _with_distractors(tools, wanted, distractors)
    answer = row.get("answer")
    task = Task(
        prompt=PromptView(
            id=f"{name}-{index}",
            messages=as_messages([typed(message, dict, "messages") for message in messages]),
            tools=tuple(typed(tool, dict, "tools") for tool in tools),
            environment=EnvironmentSpec(ENVIRONMENT, {"codes": codes, "tools": tools}),
        ),
        reference=Reference(
            answer=None if answer is None else typed(answer, str, "answer"),
            calls=calls,
            sub_answers=sub_answers,
        ),
        trace=None if known is None else _trace(known, answer),
        kind=typed(row.get("data_source", ""), str, "data_source"),
        metadata={"index": index, **{key: row[key] for key in ("split", "solve_rate") if key in row}},
    )
    check_task(task)
    without = sorted(set(task.prompt.tool_names) - set(codes))
    if without:
        raise TaskFieldError("codes", f"has no source for the tools {', '.join(without)}")
    if known is not None and known.question not in task.prompt.messages[-1]["content"]:
        problem = f"line {known.line} of {known.path} is about another question: {known.question!r}"
        raise TaskFieldError("messages", problem)
    return task


def _codes(row: dict[str, Any]) -> dict[str, str]:
    codes: dict[str, str] = _decoded(row, "codes", dict)
    for name, code in codes.items():
        typed(code, str, f"codes.{name}")
    return codes


def _with_distractors(tools: list[Any], wanted: set[str], distractors: int) -> list[Any]:
    """Return the needed tools and the first others, in the row's order."""
    kept = []
    for index, tool in enumerate(tools):
        function = typed(typed(tool, dict, f"tools[{index}]").get("function"), dict, f"tools[{index}].function")
        is_needed = function.get("name") in wanted
        if is_needed or distractors > 0:
            kept.append(tool)
            distractors -= not is_needed
    return kept


def _decoded(row: dict[str, Any], field: str, kind: type) -> Any:
    """Return a field that upstream holds as a JSON string; the JSON value itself is accepted too."""
    value = needed(row, field)
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except JsonTextError as error:
            raise TaskFieldError(field, str(error)) from error
    return typed(value, kind, field)


def _sub_answers(unsolved_set: dict[str, Any]) -> tuple[SubAnswer, ...]:
    return tuple(
        SubAnswer(tool, typed(answer, str, f"unsolved_set.{tool}"))
        for tool, answers in unsolved_set.items()
        for answer in typed(answers, list, f"unsolved_set.{tool}")
    )


def _ground_truth(row: dict[str, Any]) -> tuple[ToolCall, ...]:
    if row.get("ground_truth") is None:
        return ()
    calls = []
    for index, entry in enumerate(_decoded(row, "ground_truth", list)):
        where = f"ground_truth[{index}]"
        typed(entry, dict, where)
        name = typed(entry.get("name"), str, f"{where}.name")
        calls.append(ToolCall(name=name, arguments=typed(entry.get("parameters"), dict, f"{where}.parameters")))
    return tuple(calls)


def _trace(known: KnownCalls, answer: str | None) -> ExpertTrace:
    trace = trace_from_calls(known.calls, known.observations, source="known calls, re-executed")
    if answer is None:
        return trace
    text = f"<answer>{answer}</answer>"
    return replace(trace, final=ExpertTurn(chunks=(), pattern=TurnPattern.FINAL_ANSWER_TURN, answer=text))
