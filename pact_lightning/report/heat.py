"""Figures of single tokens: what the privilege gap's file has of a rollout, turn by turn."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pact_lightning.report.rollouts import Json
from pact_lightning.utils.errors import TaskFileError
from pact_lightning.utils.json_lines import scan_json_lines

_NAME = re.compile(r"privilege-(\d+)(?:-rank\d+)?\.jsonl")
_COLUMNS = ("texts", "components", "turns", "logp_prompt", "logp_trace")


def heat_files(folder: Path) -> list[Path]:
    """List the files that :class:`pact_lightning.PrivilegeGap` has written with ``tokens: true``."""
    return sorted(path for path in (folder / "trajectories").glob("privilege-*.jsonl") if _NAME.fullmatch(path.name))


def read_heat(path: Path) -> tuple[dict[tuple[str, str, int], Json], list[str]]:
    """Read the tokens of a file.

    Args:
        path: A file of :func:`heat_files`.

    Returns:
        For set, task and sample the tokens with their figures: ``texts``, ``components``, ``turns``, ``gap`` (nats
        that the privileged context adds to a token's log-probability) and ``logp`` (its log-probability under the
        prompt), each ``[T]``; and a sentence for each record that cannot be used.
    """
    name = _NAME.fullmatch(path.name)
    assert name is not None
    of_set = f"phase-{name[1]}"
    found: dict[tuple[str, str, int], Json] = {}
    problems: list[str] = []
    try:
        for line in scan_json_lines(path):
            if line.error is not None:
                problems.append(f"{path.name}, line {line.number}: {line.error.problem}")
            elif (tokens := _tokens(line.value)) is None:
                problems.append(f"{path.name}, line {line.number}: has no texts of tokens, as in an earlier version")
            else:
                found[of_set, str(line.value["task_id"]), int(line.value["sample"])] = tokens
    except TaskFileError as error:
        problems.append(f"{path.name}: {error.problem}")
    return found, problems


def _tokens(record: Any) -> Json | None:
    if not isinstance(record, Mapping) or not {"task_id", "sample", *_COLUMNS} <= record.keys():
        return None
    columns = [record[name] for name in _COLUMNS]
    if not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        return None
    if not isinstance(record["sample"], int) or not all(isinstance(each, int | float) for each in _numbers(record)):
        return None
    texts, components, turns, prompt, trace = columns
    gap = [round(other - logp, 3) for logp, other in zip(prompt, trace, strict=True)]
    logp = [round(value, 3) for value in prompt]
    return {"texts": list(map(str, texts)), "components": components, "turns": turns, "gap": gap, "logp": logp}


def _numbers(record: Mapping[str, Any]) -> Iterator[Any]:
    for name in ("turns", "logp_prompt", "logp_trace"):
        yield from record[name]
