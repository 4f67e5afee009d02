"""From records of a teacher to tasks with verified, segmented traces; every record is kept, or counted and located."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pact_lightning.tasks.checks import check_task
from pact_lightning.teacher.importers.conversation import Conversation, RecordError
from pact_lightning.teacher.importers.reading import Format, Place, Problem, Record, read_conversation
from pact_lightning.traces.hard_turns import Annotator, flag_names, segment_trace
from pact_lightning.traces.leak import TracePlace, trace_leaks
from pact_lightning.traces.replay import EnvironmentFailedError, Replay, per_turn, replay_calls, with_responses
from pact_lightning.traces.verdict import (
    TRUSTED,
    OnMismatch,
    Verdict,
    judge,
    with_teachers_answer,
    without_wrong_answer,
)
from pact_lightning.types.prompt import EnvironmentSpec, PromptView
from pact_lightning.types.task import Task
from pact_lightning.types.trace import ExpertTrace, ExpertTurn, flatten_calls
from pact_lightning.utils.errors import TaskFieldError


@dataclass(frozen=True)
class BuildOptions:
    """How records become tasks.

    Attributes:
        format: The records' format.
        environment: Where the tools of all records run.
        record_environments: Where a record names an environment, use that one. Off by default: it imports and runs
            whatever class the record names, with the record's arguments.
        tasks: Tasks by id. A record is then a trace of the task of its id, which it must share the user's words with;
            prompt, tools, environment and reference are the task's.
        system_prompt: Put in place of the records' own system messages; ``None`` keeps those.
        trust_teacher: Keep traces for which no reference answer is known; the teacher's final answer becomes the
            reference. They are counted as trusted, not as verified.
        on_mismatch: What becomes of a trace whose recorded responses the environment does not give.
        tool_timeout_s: Seconds that one call may take.
        annotator: Looks at turns that are hard for the rules.
    """

    format: Format = "auto"
    environment: EnvironmentSpec | None = None
    record_environments: bool = False
    tasks: Mapping[str, Task] | None = None
    system_prompt: str | None = None
    trust_teacher: bool = False
    on_mismatch: OnMismatch = "drop"
    tool_timeout_s: float = 30.0
    annotator: Annotator | None = None


@dataclass
class BuildReport:
    """What became of the records.

    Attributes:
        records: How many there were.
        kept_by: Kept traces, by what they verify by.
        problems: One per record that was not kept.
        notes: Things changed to make kept records fit, by name.
        segmented: Turns of kept traces, by what segmented them.
        flags: Kept traces with each quality flag.
        agreement: Recorded responses of all replayed traces that agree exactly, as JSON, or differ.
        taken: Responses that were not recorded, and were taken from the environment.
        solve_f1: Solve-F1 of each replayed trace whose task has sub-answers.
    """

    records: int = 0
    kept_by: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    segmented: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    agreement: tuple[int, int, int] = (0, 0, 0)
    taken: int = 0
    solve_f1: list[float] = field(default_factory=list)

    def add_verdict(self, verdict: Verdict, taken: int) -> None:
        """Counts what a replay found, whether the trace is kept or not.

        Args:
            verdict: What the replay came to.
            taken: How many responses were taken from the environment.
        """
        self.taken += taken
        exact, as_json, differs = (a + b for a, b in zip(self.agreement, verdict.agreement, strict=True))
        self.agreement = (exact, as_json, differs)
        if verdict.solve_f1 is not None:
            self.solve_f1.append(verdict.solve_f1)

    def add_kept(self, verdict: Verdict, flags: Iterable[str]) -> None:
        """Counts a kept trace."""
        self.kept_by[verdict.reason] += 1
        self.flags.update(flags)


def build_tasks(records: Iterable[Record | Problem], options: BuildOptions, report: BuildReport) -> Iterator[Task]:
    """Imports, verifies and segments records.

    Args:
        records: What :func:`~pact_lightning.teacher.importers.reading.read_records` gives.
        options: How.
        report: Filled while the tasks are drawn; afterwards ``records`` is the number of kept traces and problems.

    Yields:
        A task for every kept record. Of several records with one id the first that is kept is the task's trace.

    Raises:
        ImportError: The environment of the options cannot be imported.
    """
    kept: dict[str, Place] = {}
    for record in records:
        report.records += 1
        if isinstance(record, Problem):
            report.problems.append(replace(record, id=default_id(record.place)))
            continue
        try:
            task = _task(record, options, report, kept)
        except TaskFieldError as error:
            reason = error.reason if isinstance(error, RecordError) else "broken task"
            report.problems.append(Problem(record.place, reason, error.problem, error.field, _id(record)))
            continue
        kept[task.id] = record.place
        yield task


def _task(record: Record, options: BuildOptions, report: BuildReport, kept: Mapping[str, Place]) -> Task:
    conversation = read_conversation(record.value, options.format)
    id_ = conversation.id or default_id(record.place)
    if id_ in kept:
        raise RecordError("duplicate id", "id", f"{id_!r} is already the id of {kept[id_]}, which is kept")
    task = _joined(conversation, options.tasks) if options.tasks is not None else _made(conversation, id_, options)
    trace, replay = _replayed(task, conversation, record.place, options)
    task = replace(task, trace=trace)
    open_turn = conversation.dialogue.open_turn
    taken = 0 if open_turn is None else len(open_turn.calls)
    how, trusting = options.on_mismatch, options.trust_teacher
    verdict = judge(task, trace, replay, on_mismatch=how, trust_teacher=trusting, taken=taken)
    report.add_verdict(verdict, taken)
    if not verdict.kept:
        raise RecordError(verdict.reason, _field(record.value, conversation, verdict), verdict.text)
    if verdict.reason == TRUSTED:
        task = with_teachers_answer(task)
    notes = +conversation.dialogue.notes
    if verdict.agreement[2]:
        notes["trace with responses replaced by the environment's"] += 1
        task = replace(task, trace=with_responses(trace, replay))
    # A trace that is kept has a call that did not fail, which becomes the reference's where that has none.
    notes["reference calls taken from the trace"] += not task.reference.calls
    task, segmented = _finished(task, replay, verdict, options)
    assert task.trace is not None
    for leak in trace_leaks(task.trace, task.reference.answer):
        raise RecordError(leak.reason, _source_field(conversation, leak.place), leak.text)
    report.add_kept(verdict, task.metadata.get("quality_flags", ()))
    report.segmented.update(segmented)
    report.notes.update(+notes)
    return task


def default_id(place: Place) -> str:
    """The id of a record without one: the file's name and the record's number in it."""
    return f"{place.path.name.split('.')[0]}-{place.number}"


def _id(record: Record) -> str:
    """The id of a record that may be too broken to be read."""
    value = record.value if isinstance(record.value, dict) else {}
    given = next((value[name] for name in ("id", "task_id") if isinstance(value.get(name), str | int)), "")
    return str(given) or default_id(record.place)


def _field(record: Any, conversation: Conversation, verdict: Verdict) -> str:
    """Where in the record the reason of a verdict lies: in a call, or in what should say what is right."""
    if verdict.place is not None:
        return _source_field(conversation, verdict.place)
    return "reference" if record.get("reference") is not None else "answer"


def _source_field(conversation: Conversation, place: TracePlace) -> str:
    source = conversation.dialogue.places[place.turn]
    return source.turn if place.call is None else source.calls[place.call]


def _made(conversation: Conversation, id_: str, options: BuildOptions) -> Task:
    """A task of what the record itself says."""
    own = conversation.environment if options.record_environments else None
    environment = own or options.environment
    if environment is None:
        raise RecordError("no environment", "environment", _why_no_environment(conversation))
    conversation.dialogue.notes["environment of the record not used"] += bool(conversation.environment and not own)
    dialogue = conversation.dialogue
    messages = dialogue.messages
    if options.system_prompt is not None:
        others = (message for message in messages if message["role"] != "system")
        messages = ({"role": "system", "content": options.system_prompt}, *others)
    later = any(turn.tools for turn in dialogue.follow_ups)
    if not conversation.tools and not later:
        raise RecordError("no tools", "tools", "is missing or empty; give the schemas of the tools that are called")
    prompt = PromptView(id_, messages, conversation.tools, environment, dialogue.follow_ups)
    return Task(prompt, conversation.reference, None, conversation.kind, conversation.metadata)


def _why_no_environment(conversation: Conversation) -> str:
    if conversation.environment is not None:
        return (
            "is not used, since it could name any class to be run; allow it by record_environments, or give one for all"
        )
    if conversation.dialogue.open_turn is not None:
        missing = "is missing, and none was given for all records"
        return f"{missing}; its last calls have no response, so that it is a turn to segment and no task"
    return "is missing, and none was given for all records"


def _joined(conversation: Conversation, tasks: Mapping[str, Task]) -> Task:
    """The task that the record is a trace of."""
    task = tasks.get(conversation.id)
    if task is None:
        problem = f"{conversation.id!r} is not the id of any of the {len(tasks)} tasks"
        raise RecordError("unknown task", "id", problem)
    said = [message["content"] for message in conversation.dialogue.messages if message["role"] == "user"]
    said += [turn.content for turn in conversation.dialogue.follow_ups]
    asked = [message["content"] for message in task.prompt.messages if message["role"] == "user"]
    asked += [turn.content for turn in task.prompt.follow_ups]
    if said != asked:
        problem = f"the user says something else than in the task {task.id!r}; is this a trace of another task?"
        raise RecordError("another prompt", "messages", problem)
    return task


def _replayed(
    task: Task, conversation: Conversation, place: Place, options: BuildOptions
) -> tuple[ExpertTrace, Replay]:
    """The record's trace, and what the environment answered; calls without a response get theirs here."""
    dialogue = conversation.dialogue
    open_turns: tuple[ExpertTurn, ...] = () if dialogue.open_turn is None else (dialogue.open_turn,)
    calls = flatten_calls((*dialogue.turns, *open_turns))
    if not calls:
        raise RecordError("no tool call", "", "the teacher calls no tool; there is nothing that a trace could teach")
    try:
        replay = replay_calls(task.prompt, calls, timeout_s=options.tool_timeout_s)
    except (ImportError, EnvironmentFailedError) as error:
        if isinstance(error, ImportError) and task.prompt.environment is options.environment:
            raise
        raise RecordError("environment failed", "environment", str(error)) from error
    texts = [result.text for result in replay.results]
    completed = [replace(turn, responses=tuple(texts[len(texts) - len(turn.calls) :])) for turn in open_turns]
    dialogue.notes["last responses taken from the environment"] += len(completed)
    source = f"{place.path.name}, {place.unit} {place.number}"
    trace = ExpertTrace((*dialogue.turns, *completed), dialogue.final, source)
    return trace, replay


def _finished(task: Task, replay: Replay, verdict: Verdict, options: BuildOptions) -> tuple[Task, Counter[str]]:
    """Segments the trace, fills in the reference's calls and checks the task; also counts what segmented its turns."""
    assert task.trace is not None
    task = replace(task, trace=without_wrong_answer(task.trace, task.reference))
    assert task.trace is not None
    failed = [any(result.error for result in results) for results in per_turn(task.trace, replay)]
    trace, segmented = segment_trace(task.prompt, task.trace, failed=failed, annotator=options.annotator)
    reference = task.reference
    if not reference.calls:
        # A verified trace's calls solve the task; those that failed are not among what solves it.
        done = zip(flatten_calls(trace.turns), replay.results, strict=True)
        reference = replace(reference, calls=tuple(call for call, result in done if not result.error))
    flags = flag_names(trace, reference.answer)
    facts: dict[str, Any] = {"verified_by": verdict.reason, **({"quality_flags": flags} if flags else {})}
    task = replace(task, trace=trace, reference=reference, metadata={**task.metadata, **facts})
    check_task(task)
    return task, segmented
