"""Makes the file of known calls that :class:`~pact_lightning.tasks.ftrl.FTRLTasks` reads, by replay in the sandbox.

For rows that say which calls solve them but not what these return, such as MatchTIR's training set::

    python -m pact_lightning.tasks.ftrl_calls data/ftrl/train.jsonl data/ftrl/reference_calls.jsonl
"""

import sys
from pathlib import Path
from typing import Any

from pact_lightning.metrics.solve_scores import open_answers
from pact_lightning.tasks.checks import TaskFileError
from pact_lightning.tasks.ftrl import FTRLTasks
from pact_lightning.tasks.schema import Task
from pact_lightning.traces.replay import EnvironmentFailedError, replay_calls
from pact_lightning.whole_files import write_json_lines


def known_calls(task: Task) -> dict[str, Any]:
    """Runs a task's reference calls, in order.

    Args:
        task: A task of :class:`~pact_lightning.tasks.ftrl.FTRLTasks` with reference calls.

    Returns:
        A line of the file: ``index, calls`` [{``name, arguments, observation``}] and ``unsolved``, the expected answers
        that no response holds; a line with any gives no trace.
    """
    results = [result.text for result in replay_calls(task.prompt, task.reference.calls).results]
    calls = [{**call, "observation": text} for call, text in zip(task.reference.calls, results, strict=True)]
    solved_by = [(call["name"], text) for call, text in zip(task.reference.calls, results, strict=True)]
    unsolved = [answer.answer for answer in open_answers(solved_by, task.reference.sub_answers)]
    return {"index": task.metadata["index"], "calls": calls, "unsolved": unsolved}


def main(arguments: list[str]) -> int:
    """The command: a file of rows and the file to write. Returns the exit status."""
    if len(arguments) != 2:
        print(f"usage: python -m {__spec__.name} ROWS OUT", file=sys.stderr)  # noqa: T201  # a command
        return 2
    rows, out = map(Path, arguments)
    try:
        tasks = FTRLTasks(rows).load()
        lines = [known_calls(task) for task in tasks if task.reference.calls]
        write_json_lines(out, lines)
    except (TaskFileError, EnvironmentFailedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  # a command
        return 2
    complete = sum(not line["unsolved"] for line in lines)
    print(f"{len(tasks)} rows: {len(lines)} with calls, of which {complete} solve their row")  # noqa: T201  # a command
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
