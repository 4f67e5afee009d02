"""What an evaluation leaves behind: its scores, shown and in a file, and its rollouts as records."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pact_lightning.evaluation import Scores, scores_table
from pact_lightning.rollout.record import trajectory_record
from pact_lightning.whole_files import write_json, write_json_lines

if TYPE_CHECKING:
    from pact_lightning.evaluation_rollouts import Evaluated
    from pact_lightning.task_datamodule import TaskDataModule


def report_scores(folder: Path, stage: str, scores: Scores, shares: Collection[str], data: "TaskDataModule") -> None:
    """Shows an evaluation's scores and leaves them in ``results-{stage}.json``, with how many tasks they are of.

    Args:
        folder: The run's folder.
        stage: ``validation`` or ``test``.
        scores: Values by name.
        shares: Names of the values to be shown in percent.
        data: Where the tasks came from.
    """
    results = {
        "stage": stage,
        "tasks": len(data.tasks[stage]),
        "left_out": data.left_out[stage],
        "rollouts": str(data.evaluation),
        "scores": scores,
    }
    title = f"{stage}: {results['tasks']} tasks, {data.evaluation}"
    if results["left_out"]:
        title += f" ({results['left_out']} left out: prompt over {data.max_prompt_tokens} tokens)"
    Console().print(scores_table(title, scores, shares))
    write_json(folder / f"results-{stage}.json", results)


def write_rollouts(folder: Path, name: str, batch: "Sequence[Evaluated]") -> list[dict[str, Any]]:
    """Writes rollouts as ``trajectories/{name}.jsonl``.

    Args:
        folder: The run's folder.
        name: The file's name, without its ending.
        batch: The rollouts with their tasks.

    Returns:
        Them as records in OpenAI message format.
    """
    records = [
        trajectory_record(evaluated.task.prompt, evaluated.trajectory, kind=evaluated.task.kind) for evaluated in batch
    ]
    write_json_lines(folder / "trajectories" / f"{name}.jsonl", records)
    return records
