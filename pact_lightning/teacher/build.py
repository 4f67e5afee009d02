"""Tasks with verified, segmented traces, built from a teacher's records.

Every record becomes a task, or a problem that is counted and located.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pact_lightning.tasks.record import EnvironmentTools, check_task
from pact_lightning.teacher.importers.conversation import Conversation, Dialogue, Reading, RecordError
from pact_lightning.teacher.importers.formats import Format, read_conversation
from pact_lightning.teacher.importers.reading import Place, Problem, Record
from pact_lightning.teacher.importers.tools import read_tools
from pact_lightning.traces.hard_turns import Annotator, flag_names
from pact_lightning.traces.leak import TracePlace
from pact_lightning.traces.replay import EnvironmentFailedError, Replay, replay_calls
from pact_lightning.traces.verdict import OnMismatch, Verdict, assess
from pact_lightning.types.prompt import EnvironmentSpec, PromptView
from pact_lightning.types.task import Task
from pact_lightning.types.trace import ExpertTrace, ExpertTurn, flatten_calls
from pact_lightning.utils.errors import TaskFieldError


@dataclass(frozen=True)
class BuildOptions:
    """Settings of a build.

    Attributes:
        format: The records' format.
        environment: The environment for the tools of all records.
        record_environments: Use the environment that a record names. Off by default: it imports and runs whatever
            class the record names, with the record's arguments.
        tasks: Tasks by id. A record is then a trace of the task of its id; the user's words must be the same. Prompt,
            tools, environment and reference are the task's.
        system_prompt: Replacement for the records' own system messages; ``None`` keeps those.
        trust_teacher: Keep traces without a known reference answer; the teacher's final answer becomes the reference.
            They are counted as trusted, not as verified.
        on_mismatch: Treatment of a trace whose recorded responses differ from the environment's.
        tool_timeout_s: Seconds that one call may take.
        annotator: The segmenter of hard turns.
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
    """Counts and problems of a build.

    Attributes:
        records: Number of records.
        forms: Number of records that could be read, by format and forms.
        kept_by: Number of kept traces, by the way they verify.
        problems: One per record that was not kept.
        notes: Number of changes that made kept records fit, by name.
        segmented: Number of turns of kept traces, by what segmented them.
        flags: Number of kept traces with each quality flag.
        agreement: Numbers of recorded responses that agree exactly, agree as JSON, and differ; of all replayed traces.
        taken: Number of responses that were not recorded and were taken from the environment.
        solve_f1: Solve-F1 of each replayed trace whose task has sub-answers.
    """

    records: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    kept_by: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    segmented: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    agreement: tuple[int, int, int] = (0, 0, 0)
    taken: int = 0
    solve_f1: list[float] = field(default_factory=list)

    def add_verdict(self, verdict: Verdict, taken: int) -> None:
        """Count a verdict, whether its trace is kept or not.

        Args:
            verdict: The verdict.
            taken: Number of responses that were taken from the environment.
        """
        self.taken += taken
        exact, as_json, differs = (a + b for a, b in zip(self.agreement, verdict.agreement, strict=True))
        self.agreement = (exact, as_json, differs)
        if verdict.solve_f1 is not None:
            self.solve_f1.append(verdict.solve_f1)


def build_tasks(records: Iterable[Record | Problem], options: BuildOptions, report: BuildReport) -> Iterator[Task]:
    """Import, verify and segment records.

    Args:
        records: The output of :func:`~pact_lightning.teacher.importers.reading.read_records`.
        options: The settings.
        report: Report to fill; it is complete once all tasks are drawn.

    Yields:
        A task for every kept record. Of several records with one id the first good one is kept.

    Raises:
        ImportError: The environment of the options cannot be imported.
    """
    kept: dict[str, Place] = {}
    asked = EnvironmentTools()
    for record in records:
        report.records += 1
        if isinstance(record, Problem):
            report.problems.append(replace(record, id=default_id(record.place)))
            continue
        try:
            task = _task(record, options, report, kept, asked)
        except TaskFieldError as error:
            reason = error.reason if isinstance(error, RecordError) else "broken task"
            report.problems.append(Problem(record.place, reason, error.problem, error.field, _id(record)))
            continue
        kept[task.id] = record.place
        yield task


def _task(
    record: Record, options: BuildOptions, report: BuildReport, kept: Mapping[str, Place], asked: EnvironmentTools
) -> Task:
    conversation = read_conversation(record.value, options.format)
    report.forms[conversation.form] += 1
    if not conversation.tools and not any(turn.tools for turn in conversation.dialogue.follow_ups):
        conversation = _with_tools(record.value, conversation, options, asked)
    id_ = conversation.id or default_id(record.place)
    if id_ in kept:
        raise RecordError("duplicate id", "id", f"{id_!r} is already the id of {kept[id_]}, which is kept")
    task = _joined(conversation, options.tasks) if options.tasks is not None else _made(conversation, id_, options)
    trace, replay = _replayed(task, conversation, record.place, options)
    open_turn = conversation.dialogue.open_turn
    taken = 0 if open_turn is None else len(open_turn.calls)
    found = assess(
        task,
        trace,
        replay,
        on_mismatch=options.on_mismatch,
        trust_teacher=options.trust_teacher,
        taken=taken,
        segment=True,
        annotator=options.annotator,
    )
    verdict = found.verdict
    report.add_verdict(verdict, taken)
    if not verdict.kept:
        raise RecordError(verdict.reason, _field(record.value, conversation, verdict), verdict.text)
    notes = +conversation.dialogue.notes
    notes["trace with responses replaced by the environment's"] += bool(verdict.agreement[2])
    notes["reference calls taken from the trace"] += not found.task.reference.calls
    task = _finished(found.task, replay, verdict)
    for leak in found.leaks:
        raise RecordError(leak.reason, _source_field(conversation, leak.place), leak.text)
    report.kept_by[verdict.reason] += 1
    report.flags.update(task.metadata.get("quality_flags", ()))
    report.segmented.update(found.segmented)
    report.notes.update(+notes)
    return task


def default_id(place: Place) -> str:
    """Return the id of a record without one: the file's name and the record's number in it."""
    return f"{place.path.name.split('.')[0]}-{place.number}"


def _id(record: Record) -> str:
    """Return the id of a record that may be too broken to be read."""
    value = record.value if isinstance(record.value, dict) else {}
    given = next((value[name] for name in ("id", "task_id") if isinstance(value.get(name), str | int)), "")
    return str(given) or default_id(record.place)


def _field(record: Any, conversation: Conversation, verdict: Verdict) -> str:
    """Return the record's field that a verdict is about: a call, or the missing or unmet reference."""
    if verdict.place is not None:
        return _source_field(conversation, verdict.place)
    return "reference" if record.get("reference") is not None else "answer"


def _source_field(conversation: Conversation, place: TracePlace) -> str:
    source = conversation.dialogue.places[place.turn]
    return source.turn if place.call is None else source.calls[place.call]


def _made(conversation: Conversation, id_: str, options: BuildOptions) -> Task:
    """Make a task of the record itself."""
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
        raise RecordError("no tools", "tools", "is missing or empty, and the environment lists none; give the schemas")
    prompt = PromptView(id_, messages, conversation.tools, environment, dialogue.follow_ups)
    return Task(prompt, conversation.reference, None, conversation.kind, conversation.metadata)


def _with_tools(
    record: Any, conversation: Conversation, options: BuildOptions, asked: EnvironmentTools
) -> Conversation:
    """Read a record that lists no tools again, with those of its task, or else of its environment."""
    if options.tasks is not None:
        task = options.tasks.get(conversation.id)
        turns = () if task is None else task.prompt.follow_ups
        tools = [] if task is None else [*task.prompt.tools, *(tool for turn in turns for tool in turn.tools)]
        return read_conversation(record, options.format, tools)
    environment = (conversation.environment if options.record_environments else None) or options.environment
    if environment is None:
        return conversation
    try:
        listed = asked.of(environment)
    except TaskFieldError as error:
        if isinstance(error.__cause__, ImportError) and environment is options.environment:
            raise error.__cause__ from error
        raise RecordError("no tools", error.field, error.problem) from error
    conversation = read_conversation(record, options.format, read_tools(listed, "tools", Reading()))
    conversation.dialogue.notes["tools asked of the environment"] += 1
    return conversation


def _why_no_environment(conversation: Conversation) -> str:
    if conversation.environment is not None:
        return (
            "is not used, since it could name any class to be run; allow it by record_environments, or give one for all"
        )
    missing = "is missing, and none was given for all records"
    if conversation.dialogue.open_turn is not None:
        return f"{missing}; its last calls have no response, so that it is a turn to segment and no task"
    return missing


def _joined(conversation: Conversation, tasks: Mapping[str, Task]) -> Task:
    """Find the task that the record is a trace of."""
    task = tasks.get(conversation.id)
    if task is None:
        problem = f"{conversation.id!r} is not the id of any of the {len(tasks)} tasks"
        raise RecordError("unknown task", "id", problem)
    if _users_words(conversation.dialogue) != _users_words(task.prompt):
        problem = f"the user says something else than in the task {task.id!r}; is this the trace of another task?"
        raise RecordError("another prompt", "messages", problem)
    return task


def _users_words(said: Dialogue | PromptView) -> list[Any]:
    first = [message["content"] for message in said.messages if message["role"] == "user"]
    return [*first, *(turn.content for turn in said.follow_ups)]


def _replayed(
    task: Task, conversation: Conversation, place: Place, options: BuildOptions
) -> tuple[ExpertTrace, Replay]:
    """Replay the record's calls; return its trace, with responses for calls that had none, and the replay."""
    dialogue = conversation.dialogue
    open_turns: tuple[ExpertTurn, ...] = () if dialogue.open_turn is None else (dialogue.open_turn,)
    calls = flatten_calls((*dialogue.turns, *open_turns))
    if not calls:
        raise RecordError("no tool call", "", "the teacher calls no tool; a trace would teach nothing")
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


def _finished(task: Task, replay: Replay, verdict: Verdict) -> Task:
    """Fill in the reference's calls and the metadata, and check the task."""
    assert task.trace is not None
    reference = task.reference
    if not reference.calls:
        # A verified trace's calls solve the task; those that failed did not help.
        done = zip(flatten_calls(task.trace.turns), replay.results, strict=True)
        reference = replace(reference, calls=tuple(call for call, result in done if not result.error))
    flags = flag_names(task.trace, reference.answer)
    facts: dict[str, Any] = {"verified_by": verdict.reason, **({"quality_flags": flags} if flags else {})}
    task = replace(task, reference=reference, metadata={**task.metadata, **facts})
    check_task(task)
    return task
