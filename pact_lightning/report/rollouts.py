"""Trajectories of a run as a page needs them: a short row of each, and its body, read when it is opened."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pact_lightning.compare.results import evaluation_of
from pact_lightning.rollout.openai_format import rollout_files
from pact_lightning.teacher.importers.reading import Problem
from pact_lightning.teacher.rollouts import RolloutRecord, read_rollouts

Json = dict[str, Any]

MAX_TEXT = 20_000
"""Characters of a text in a page; of a longer one the middle is left out [D]."""
_SNIPPET = 160
_PHASE = re.compile(r"phase-(\d+)")
_RANK = re.compile(r"-rank\d+$")


@dataclass(slots=True)
class RolloutFile:
    """Trajectories of one file.

    Attributes:
        name: The file's name without its ending, such as ``phase-0003``.
        rows: A row for each trajectory that is shown.
        bodies: Their messages, in the same order.
        count: Trajectories in the file, those that are not shown among them.
        problems: A sentence for each record that cannot be read.
    """

    name: str
    rows: list[Json] = field(default_factory=list)
    bodies: list[Json] = field(default_factory=list)
    count: int = 0
    problems: list[str] = field(default_factory=list)


def files_in_order(folder: Path) -> list[Path]:
    """List the files of a run that hold trajectories, in the order in which they came into being."""
    return sorted(rollout_files(folder / "trajectories"), key=lambda path: (_place(path), path.name))


def set_of(path: Path) -> str:
    """Return the name of the phase or evaluation that a file is of; the files of several processes share it.

    >>> set_of(Path("phase-0003-rank1.jsonl"))
    'phase-0003'
    """
    return _RANK.sub("", path.stem)


def _place(path: Path) -> float:
    """Order a file among the others by the phases finished before it; a phase's own rollouts stand behind."""
    phase = _PHASE.match(path.name)
    if phase:
        return int(phase[1]) + 0.5
    evaluation = evaluation_of(path)
    phases = None if evaluation is None else evaluation[1]
    if phases is None:
        return float("inf")
    return phases + 0.75 if "-step-" in path.name else phases


def count_lines(path: Path) -> int:
    """Count the lines of a file without reading what they say."""
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def allot(counts: Sequence[int], most: int) -> list[int]:
    """Share a number of places among files: small files get all they need, large ones the same number each.

    Args:
        counts: What each file holds.
        most: Places in all.

    >>> allot([10, 100, 100], 110)
    [10, 50, 50]
    """
    shares = [0] * len(counts)
    left = most
    order = sorted(range(len(counts)), key=counts.__getitem__)
    for position, index in enumerate(order):
        shares[index] = min(counts[index], left // (len(order) - position))
        left -= shares[index]
    return shares


def read_file(path: Path, most: int) -> RolloutFile:
    """Read the trajectories of a file.

    Args:
        path: A file of ``trajectories/``.
        most: Once so many are read, further tasks are only counted; the rollouts of a task stay together.
    """
    found = RolloutFile(path.stem)
    tasks: set[str] = set()
    for record in read_rollouts(path):
        found.count += 1
        if isinstance(record, Problem):
            found.problems.append(f"{path.name}, line {record.place.number}: {record.text}")
        elif record.id in tasks or len(found.rows) < most:
            tasks.add(record.id)
            turns = list(_turns(record))
            found.rows.append(_row(record, turns, set_of(path)))
            found.bodies.append(_body(record, turns))
    return found


def _row(record: RolloutRecord, turns: Sequence[Json], of_set: str) -> Json:
    solved = record.solved
    if solved is None and "answer_correct" in record.scores:
        solved = record.scores["answer_correct"] >= 1
    asked = next((message for message in record.prompt if message["role"] == "user"), {})
    calls = [call["name"] for turn in turns for call in turn["calls"]]
    return {
        "set": of_set,
        "line": record.line,
        "task": record.id,
        "sample": record.sample,
        "phase": record.phase,
        "kind": record.kind,
        "stop": record.stop_reason,
        "tokens": record.tokens,
        "turns": len(turns),
        "calls": len(calls),
        "tools": sorted(set(calls)),
        "errors": sum(bool(response["error"]) for turn in turns for response in turn["responses"]),
        "malformed": sum(len(turn["malformed"]) for turn in turns),
        "solved": solved,
        "reward": round(sum(record.rewards), 4) if record.rewards else None,
        "rewards": [round(value, 3) for value in record.rewards],
        "advantages": [round(value, 3) for value in record.advantages],
        "scores": {name: round(value, 4) for name, value in record.scores.items()},
        "question": " ".join(_text(asked.get("content"))[:_SNIPPET].split()),
    }


def _body(record: RolloutRecord, turns: Sequence[Json]) -> Json:
    return {"prompt": [_message(message) for message in record.prompt], "turns": turns}


def _turns(record: RolloutRecord) -> Iterator[Json]:
    for messages in record.turns:
        said = messages[0]
        listed = [call for call in _listed(said, "tool_calls") if isinstance(call, dict)]
        calls, ids = [], []
        for call in listed:
            function = call.get("function")
            function = function if isinstance(function, dict) else {}
            calls.append({"name": cut(_text(function.get("name"))), "arguments": cut(_text(function.get("arguments")))})
            ids.append(call.get("id"))
        malformed = [cut(_text(error)) for error in _listed(said, "malformed_calls")]
        responses = []
        for message in messages[1:]:
            if message["role"] == "user":
                continue
            asked = message.get("tool_call_id")
            of = ids.index(asked) if asked is not None and asked in ids else None
            responses.append(
                {"of": of, "error": message.get("error") is True, "text": cut(_text(message.get("content")))}
            )
        yield {
            "reasoning": cut(_text(said.get("reasoning_content"))),
            "text": cut(_text(said.get("content"))),
            "written": cut(_text(said.get("text"))) if malformed else "",
            "calls": calls,
            "malformed": malformed,
            "responses": responses,
            "users": [_message(message) for message in messages[1:] if message["role"] == "user"],
        }


def _message(message: Mapping[str, Any]) -> Json:
    return {"role": str(message["role"]), "text": cut(_text(message.get("content")))}


def _listed(message: Mapping[str, Any], name: str) -> list[Any]:
    value = message.get(name)
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def cut(text: str) -> str:
    """Leave out the middle of a long text, and say how much that is."""
    if len(text) <= MAX_TEXT:
        return text
    head, tail = MAX_TEXT * 3 // 4, MAX_TEXT // 4
    left = len(text) - head - tail
    return f"{text[:head]}\n[... {left:,} characters are left out here; the run's file has them ...]\n{text[-tail:]}"
