"""Rollouts on disk while their phase lasts: an interrupted phase reads its finished ones instead of making them again.

Each phase and process has a file of JSON lines. The first line names all that the rollouts depend on beside their
prompts. Then each rollout has a line, written whole as the rollout ends; it comes back equal in every field. The
log-probabilities under ``pi_old`` lie in a file of their own, since the weights that gave them are gone once the phase
has made a step.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pact_lightning.rollout.engine import RolloutKey, RolloutRequest
from pact_lightning.types.prompt import PromptView, UserTurn
from pact_lightning.types.tool_call import ParsedCall
from pact_lightning.types.trajectory import Component, RolloutTurn, Segment, StopReason, Trajectory
from pact_lightning.utils.errors import NotResumableError, TaskFileError
from pact_lightning.utils.json_lines import AppendLog, read_json_lines

_FORMAT = 2
_LOGPS = ".old_logps.safetensors"

PromptIds = Callable[[PromptView], Sequence[int]]


class RolloutStore:
    """Folder with the rollouts of one training run.

    Args:
        folder: The folder; made when first written.
        suffix: Suffix of this process's file names, if several processes train together. The files of all are read.
    """

    def __init__(self, folder: Path, suffix: str = "") -> None:
        self.folder = folder
        self.suffix = suffix

    @contextmanager
    def open(
        self, what: str, policy: str, requests: Sequence[RolloutRequest], prompt_ids: PromptIds
    ) -> Iterator["StoredRollouts"]:
        """Open the file of a phase or a validation; a file of another policy is begun anew.

        Args:
            what: Name of the phase or validation, and of the file.
            policy: Name of all that the rollouts depend on beside their requests.
            requests: Requests whose rollouts are looked for in the file.
            prompt_ids: Gives a prompt's token ids.
        """
        header = {"format": _FORMAT, "policy": policy}
        records: list[Any] = []
        if self.folder.is_file():
            aside = self.folder.replace(self.folder.with_name(f"{self.folder.name}.damaged"))
            rank_zero_warn(f"{self.folder} is a file, where rollouts are stored; it is now {aside.name}")
        for path in sorted(self.folder.glob(f"{what}*.jsonl")):
            if path != self._path(what) and path.is_file():
                records += _records_of_another(path, header)
        own = _opened(self._path(what), header)
        try:
            records += own.records[1:]
            yield StoredRollouts(own, _known(records, requests, prompt_ids))
        finally:
            own.close()

    def save_logps(self, what: str, policy: str, logps: Mapping[str, Tensor]) -> None:
        """Save log-probabilities under ``pi_old`` by name, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{what}{self.suffix}{_LOGPS}"
        partial = path.with_name(f"{path.name}.partial")
        save_file({name: values.cpu().contiguous() for name, values in logps.items()}, partial, {"policy": policy})
        partial.replace(path)

    def read_logps(self, what: str, policy: str) -> dict[str, Tensor]:
        """Return the log-probabilities that all processes have saved.

        Raises:
            NotResumableError: None are of this policy.
        """
        found: dict[str, Tensor] | None = None
        for path in sorted(self.folder.glob(f"{what}*{_LOGPS}")):
            try:
                with safe_open(path, "pt") as file:
                    if (file.metadata() or {}).get("policy") == policy:
                        found = (found or {}) | {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            except SafetensorError as error:
                rank_zero_warn(f"{path} cannot be read and is ignored: {error}")
        if found is None:
            raise NotResumableError(
                f"the checkpoint was saved in the middle of {what}, but the log-probabilities under the policy that "
                f"began it are not in {self.folder}; use an earlier checkpoint, from the end of a phase"
            )
        return found

    def drop(self, before: int) -> None:
        """Remove the rollouts of earlier phases, and of the validations between them.

        Args:
            before: The phase that begins.
        """
        for path in self.folder.glob(f"*{self.suffix}.*"):
            kind, _, number = path.name.partition(".")[0].removesuffix(self.suffix).rpartition("-")
            if number.isdecimal() and (int(number) < before or (kind == "validation" and int(number) == before)):
                _remove(path)

    def forget(self, what: str) -> None:
        """Remove this process's rollouts of a phase or validation; they will be made again."""
        _remove(self._path(what))

    def clear(self) -> None:
        """Remove all files of this process, and the folder once it is empty."""
        for path in self.folder.glob(f"*{self.suffix}.*"):
            _remove(path)
        with suppress(OSError):  # another process still has files in it, or has just removed it
            self.folder.rmdir()

    def _path(self, what: str) -> Path:
        return self.folder / f"{what}{self.suffix}.jsonl"


class StoredRollouts:
    """Open file of a phase or a validation.

    Args:
        log: The file.
        known: Rollouts of the requests that were finished before.
    """

    def __init__(self, log: AppendLog, known: Mapping[RolloutKey, Trajectory]) -> None:
        self._log = log
        self.known = known

    def append(self, request: RolloutRequest, trajectory: Trajectory) -> None:
        """Write a rollout that has just ended."""
        self._log.append({"request": _request_name(request), "rollout": _trajectory_to_json(trajectory)})


def _request_name(request: RolloutRequest) -> str:
    """Name a request by all that it asks for: the prompt with its tools and environment, and the seed."""
    return hashlib.blake2b(repr((request.prompt, request.seed)).encode(errors="replace"), digest_size=12).hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _opened(path: Path, header: Mapping[str, Any]) -> AppendLog:
    """Open this process's own file, begun anew if it is unreadable or of another policy."""
    try:
        log = AppendLog(path)
    except (TaskFileError, IsADirectoryError) as error:
        rank_zero_warn(f"stored rollouts are ignored because their file is damaged: {error}")
        _remove(path)
        log = AppendLog(path)
    if log.records and log.records[0] != header:
        log.close()
        path.unlink()
        log = AppendLog(path)
    if not log.records:
        log.append(header)
    return log


def _records_of_another(path: Path, header: Mapping[str, Any]) -> list[Any]:
    """Read another process's file up to the first line that is not whole."""
    records: list[Any] = []
    try:
        for _, record in read_json_lines(path):
            records.append(record)
    except TaskFileError:
        pass  # the process is writing this line, or was killed while it wrote it
    return records[1:] if records[:1] == [header] else []


def _known(
    records: Sequence[Mapping[str, Any]], requests: Sequence[RolloutRequest], prompt_ids: PromptIds
) -> dict[RolloutKey, Trajectory]:
    numbers = {_request_name(request): number for number, request in enumerate(requests)}
    prompts: dict[int, tuple[int, ...]] = {}
    known: dict[RolloutKey, Trajectory] = {}
    damaged = 0
    for record in records:
        try:
            number = numbers.get(record["request"])
            if number is None or record["rollout"]["sample"] >= requests[number].samples:
                continue
            if number not in prompts:
                prompts[number] = tuple(prompt_ids(requests[number].prompt))
            trajectory = _trajectory_from_json(record["rollout"], prompts[number])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            damaged += 1
            continue
        known[number, trajectory.sample] = trajectory
    if damaged:
        rank_zero_warn(f"{damaged} stored rollouts are ignored and repeated because their lines are damaged")
    return known


def _trajectory_to_json(trajectory: Trajectory) -> dict[str, Any]:
    """Return a rollout as JSON values, without its prompt, which is known from the request."""
    record = {field.name: getattr(trajectory, field.name) for field in fields(trajectory) if field.name != "prompt_ids"}
    segments = [[list(segment.ids), int(segment.component), segment.turn] for segment in trajectory.segments]
    return record | {"segments": segments, "turns": [_turn_to_json(turn) for turn in trajectory.turns]}


def _turn_to_json(turn: RolloutTurn) -> dict[str, Any]:
    record = {field.name: getattr(turn, field.name) for field in fields(turn)}
    user = None if turn.user is None else [turn.user.content, [dict(tool) for tool in turn.user.tools]]
    return record | {"parsed": [[entry.call, entry.error] for entry in turn.parsed], "user": user}


def _trajectory_from_json(record: Mapping[str, Any], prompt_ids: tuple[int, ...]) -> Trajectory:
    segments = [Segment(tuple(ids), Component(component), turn) for ids, component, turn in record["segments"]]
    turns = [_turn_from_json(turn) for turn in record["turns"]]
    stop_reason = StopReason(record["stop_reason"])
    changed = {"prompt_ids": prompt_ids, "segments": segments, "turns": turns, "stop_reason": stop_reason}
    return Trajectory(**{**record, **changed})


def _turn_from_json(record: Mapping[str, Any]) -> RolloutTurn:
    changed = {
        "parsed": tuple(ParsedCall(call, error) for call, error in record["parsed"]),
        "responses": tuple(record["responses"]),
        "errors": tuple(record["errors"]),
        "user": None if record["user"] is None else UserTurn(record["user"][0], tuple(record["user"][1])),
    }
    return RolloutTurn(**{**record, **changed})
