"""Command ``pact-lightning traces show``: a trace, or a rollout of a run, in colours."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from pact_lightning.teacher.importers.reading import Problem
from pact_lightning.teacher.rollouts import RolloutRecord, is_rollout_file, read_rollouts, rollout_view, samples_table
from pact_lightning.teacher.stored import StoredFormat, StoredTrace, load_tasks, read_stored, task_traces
from pact_lightning.teacher.view import Beside, trace_view
from pact_lightning.traces.hard_turns import quality_flags
from pact_lightning.types.trace import ExpertTrace

_NAMED_IDS = 5


def show(
    file: str,
    *,
    id: str | None = None,
    sample: int | None = None,
    tasks: str | None = None,
    format: StoredFormat = "auto",
    full: bool = False,
) -> int:
    """Print a trace or a rollout: its components in colours, turn by turn.

    Of a trace, what each level L0 to L4 supervises is shown; of a rollout, what ended it, and the reward and advantage
    of every turn, malformed calls included.

    Args:
        file: A task file, a .yaml file that names a task source, conversations, or the rollouts of a run
            (trajectories/).
        id: Which task or record; the first one by default. A record without an id is named by file and line.
        sample: Which of the task's rollouts, by its number; the first one by default.
        tasks: A task file, or a .yaml file that names a task source; the task's trace is shown beside the rollout,
            or below it where the terminal is narrow.
        format: What the file holds; auto tells by its records.
        full: Show long texts whole.

    Returns:
        0.

    Raises:
        ValueError: There is no such trace or rollout.
    """
    if format == "auto" and is_rollout_file(Path(file)):
        return _show_rollout(file, id, sample, tasks, full)
    if sample is not None or tasks is not None:
        raise ValueError(
            f"{file} contains no rollouts; sample and tasks are options for the files in a run's trajectories/"
        )
    problems: list[Problem] = []
    others: list[str] = []
    for trace in read_stored(Path(file), format):
        if isinstance(trace, Problem):
            problems.append(trace)
        elif id is None or trace.prompt.id == id:
            Console().print(trace_view(trace, _flags(trace), full=full))
            return 0
        else:
            others.append(trace.prompt.id)
    raise _not_found(file, f"trace{'' if id is None else f' of {id!r}'}", problems, others)


def _show_rollout(file: str, id: str | None, sample: int | None, tasks: str | None, full: bool) -> int:
    problems: list[Problem] = []
    others: dict[str, None] = {}
    found: list[RolloutRecord] = []
    for rollout in read_rollouts(Path(file)):
        if isinstance(rollout, Problem):
            problems.append(rollout)
        elif rollout.id == (id or (found[0].id if found else rollout.id)):
            found.append(rollout)
        else:
            others[rollout.id] = None
    chosen = next((rollout for rollout in found if sample is None or rollout.sample == sample), None)
    if chosen is None:
        samples = ", ".join(str(rollout.sample) for rollout in found)
        if found:
            raise ValueError(f"{file} holds no sample {sample} of {found[0].id!r}; its samples are {samples}")
        raise _not_found(file, f"rollout{'' if id is None else f' of {id!r}'}", problems, list(others))
    views: list[RenderableType] = [rollout_view(chosen, full=full)]
    if tasks is not None:
        trace = next((trace for trace in task_traces(load_tasks(tasks)) if trace.prompt.id == chosen.id), None)
        if trace is None:
            _say(f"{tasks} holds no trace of {chosen.id!r}.")
        else:
            views.append(trace_view(trace, _flags(trace), full=full))
    Console().print(Beside(views))
    Console().print(samples_table(found))
    return 0


def _not_found(file: str, what: str, problems: Sequence[Problem], others: Sequence[str]) -> ValueError:
    """Say which records are broken; return the error that names the others."""
    for problem in problems[:3]:
        _say(str(problem))
    broken = f"; {len(problems)} of its records are broken" if problems else ""
    if others:
        more = f" and {len(others) - _NAMED_IDS} more" if len(others) > _NAMED_IDS else ""
        broken += f"; it holds {', '.join(map(repr, others[:_NAMED_IDS]))}{more}"
    return ValueError(f"{file} holds no {what}{broken}")


def _say(sentence: str) -> None:
    """Print a sentence without markup and wrapping."""
    Console().print(sentence, markup=False, highlight=False, soft_wrap=True)


def _flags(trace: StoredTrace) -> Any:
    complete = [turn for turn in trace.turns if len(turn.calls) == len(turn.responses) and not turn.answer]
    return quality_flags(ExpertTrace(tuple(complete)), trace.answer)
