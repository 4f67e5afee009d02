"""What ``pact-lightning traces`` writes and says."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pact_lightning.traces.importers.reading import Problem

_Item = TypeVar("_Item")
_NAMED_IDS = 5
_SEGMENTED = {
    "rules": "by the rules",
    "annotator": "by the annotator",
    "hard turn, rules kept": "hard for the rules, whose chunks are kept",
}


def new_json_lines(out: str, overwrite: bool) -> Path:
    """The file to write.

    Raises:
        ValueError: Its name is not that of JSON Lines, or it is there already and must stay.
    """
    if not out.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"{out}: what is written is JSON Lines; let the name end in .jsonl or .jsonl.gz")
    if Path(out).exists() and not overwrite:
        raise ValueError(f"there is a file {out} already; give another name, or --overwrite true")
    return Path(out)


def report_path(out: Path) -> Path:
    """Where the report on a task file goes unless it is said."""
    return out.with_name(f"{out.name.removesuffix('.gz').removesuffix('.jsonl')}.report.json")


def counted(items: Iterable[_Item], what: str) -> Iterator[_Item]:
    """Passes items on and shows, on the error stream, how many there were so far."""
    columns = (SpinnerColumn(), TextColumn("{task.completed} {task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        for item in items:
            yield item
            progress.advance(task)


def some_ids(ids: Sequence[str]) -> str:
    """The first of some ids, and how many more there are."""
    more = f" and {len(ids) - _NAMED_IDS} more" if len(ids) > _NAMED_IDS else ""
    return ", ".join(repr(id_) for id_ in ids[:_NAMED_IDS]) + more


def say_segmented(counts: Counter[str], problems: Sequence[Problem]) -> None:
    """Says how many turns were segmented by what, and which records were left out.

    Args:
        counts: Turns by what segmented them, as :func:`~pact_lightning.traces.annotation.segment_turns` counts them.
        problems: What could not be read.
    """
    turns = "; ".join(f"{count} {_SEGMENTED.get(name, name)}" for name, count in counts.most_common()) or "none"
    say(f"Turns segmented: {turns}.")
    for reason, count in Counter(problem.reason for problem in problems).most_common():
        example = next(problem for problem in problems if problem.reason == reason)
        say(f"{count} {'record' if count == 1 else 'records'} left out, {reason}; the first: {example}")


def say(sentence: str) -> None:
    """Prints a sentence as it is."""
    Console().print(sentence, markup=False, highlight=False, soft_wrap=True)
