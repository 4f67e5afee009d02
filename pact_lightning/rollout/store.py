"""A finished rollout as plain JSON values and back, equal in every field: ids, turns, log-probabilities, counts.

Rollouts on disk while their phase lasts: what an interrupted phase has finished is read and not rolled out again.

A file per phase (and per process), JSON lines: first what the rollouts depend on beside their prompts, then one line
for each, written whole as the rollout ends. Beside it lie the log-probabilities under ``pi_old``: the weights that gave
them are gone once the phase has made a step.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
from pact_lightning.utils.errors import TaskFileError
from pact_lightning.utils.json_lines import AppendLog, read_json_lines


def stored_trajectory(trajectory: Trajectory) -> dict[str, Any]:
    """What has to be kept of a rollout; its prompt is known from its task."""
    return {
        "task_id": trajectory.task_id,
        "sample": trajectory.sample,
        "segments": [[list(segment.ids), int(segment.component), segment.turn] for segment in trajectory.segments],
        "turns": [_stored_turn(turn) for turn in trajectory.turns],
        "stop_reason": str(trajectory.stop_reason),
        "sampled_logps": list(trajectory.sampled_logps),
        "environment_reward": trajectory.environment_reward,
        "tool_calls": trajectory.tool_calls,
        "tool_timeouts": trajectory.tool_timeouts,
        "unanswered_calls": trajectory.unanswered_calls,
        "environment_failures": trajectory.environment_failures,
    }


def read_trajectory(record: Mapping[str, Any], prompt_ids: tuple[int, ...]) -> Trajectory:
    """The rollout that :func:`stored_trajectory` was given.

    Args:
        record: Its record.
        prompt_ids: Its prompt, token by token.

    Raises:
        KeyError: The record lacks a field.
        ValueError: A field holds no such value.
    """
    return Trajectory(
        task_id=record["task_id"],
        sample=record["sample"],
        prompt_ids=prompt_ids,
        segments=[Segment(tuple(ids), Component(component), turn) for ids, component, turn in record["segments"]],
        turns=[_read_turn(turn) for turn in record["turns"]],
        stop_reason=StopReason(record["stop_reason"]),
        sampled_logps=record["sampled_logps"],
        environment_reward=record["environment_reward"],
        tool_calls=record["tool_calls"],
        tool_timeouts=record["tool_timeouts"],
        unanswered_calls=record["unanswered_calls"],
        environment_failures=record["environment_failures"],
    )


def _stored_turn(turn: RolloutTurn) -> dict[str, Any]:
    return {
        "text": turn.text,
        "reasoning": turn.reasoning,
        "answer": turn.answer,
        "parsed": [[entry.call, entry.error] for entry in turn.parsed],
        "responses": turn.responses,
        "errors": turn.errors,
        "user": None if turn.user is None else [turn.user.content, [dict(tool) for tool in turn.user.tools]],
    }


def _read_turn(record: Mapping[str, Any]) -> RolloutTurn:
    user = record["user"]
    return RolloutTurn(
        text=record["text"],
        reasoning=record["reasoning"],
        answer=record["answer"],
        parsed=tuple(ParsedCall(call, error) for call, error in record["parsed"]),
        responses=tuple(record["responses"]),
        errors=tuple(record["errors"]),
        user=None if user is None else UserTurn(user[0], tuple(user[1])),
    )


_FORMAT = 2
_LOGPS = ".old_logps.safetensors"
PromptIds = Callable[[PromptView], Sequence[int]]


class RolloutStore:
    """The rollouts of one run.

    Args:
        folder: Where its files are; made when first written.
        suffix: Of this process's files, where several train together; all of them are read.
    """

    def __init__(self, folder: Path, suffix: str = "") -> None:
        self.folder = folder
        self.suffix = suffix

    @contextmanager
    def open(
        self, what: str, policy: str, requests: Sequence[RolloutRequest], prompt_ids: PromptIds
    ) -> Iterator["StoredRollouts"]:
        """Opens the file of a phase or of a validation; one of another policy is begun anew.

        Args:
            what: Name of the file.
            policy: All that the rollouts depend on beside their requests; only rollouts of the same are known.
            requests: What is to be rolled out.
            prompt_ids: A prompt's tokens.
        """
        header = {"format": _FORMAT, "policy": policy}
        records: list[Any] = []
        for path in sorted(self.folder.glob(f"{what}*.jsonl")):
            if path != self._path(what):
                records += _records_of_another(path, header)
        own = _opened(self._path(what), header)
        try:
            records += own.records[1:]
            yield StoredRollouts(own, _known(records, requests, prompt_ids))
        finally:
            own.close()

    def save_logps(self, what: str, policy: str, logps: Mapping[str, Tensor]) -> None:
        """Keeps log-probabilities under ``pi_old``, by names of the caller's; whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{what}{self.suffix}{_LOGPS}"
        partial = path.with_name(f"{path.name}.partial")
        save_file({name: values.cpu().contiguous() for name, values in logps.items()}, partial, {"policy": policy})
        partial.replace(path)

    def read_logps(self, what: str, policy: str) -> dict[str, Tensor]:
        """What :meth:`save_logps` kept, that of all processes.

        Raises:
            FileNotFoundError: There is nothing of this policy.
        """
        found: dict[str, Tensor] | None = None
        for path in sorted(self.folder.glob(f"{what}*{_LOGPS}")):
            try:
                with safe_open(path, "pt") as file:
                    if (file.metadata() or {}).get("policy") == policy:
                        found = (found or {}) | {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            except SafetensorError as error:
                rank_zero_warn(f"{path} cannot be read and is left out: {error}")
        if found is None:
            raise FileNotFoundError(
                f"the checkpoint stands in the middle of {what}, but the log-probabilities under the policy that began "
                f"it are not in {self.folder}; name an earlier checkpoint, one of the end of a phase"
            )
        return found

    def drop(self, before: int) -> None:
        """Removes the rollouts of earlier phases, and those of the validations between them."""
        for path in self.folder.glob(f"*{self.suffix}.*"):
            kind, _, number = path.name.partition(".")[0].removesuffix(self.suffix).rpartition("-")
            if number.isdecimal() and (int(number) < before or (kind == "validation" and int(number) == before)):
                path.unlink(missing_ok=True)

    def forget(self, what: str) -> None:
        """Removes this process's rollouts of a phase or validation, so that they are made again."""
        self._path(what).unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes everything of this process, and the folder once it is empty."""
        for path in self.folder.glob(f"*{self.suffix}.*"):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # another process has files in it yet, or has removed it at this moment
            self.folder.rmdir()

    def _path(self, what: str) -> Path:
        return self.folder / f"{what}{self.suffix}.jsonl"


class StoredRollouts:
    """An open file of the store.

    Args:
        log: The file.
        known: Rollouts that were finished before.
    """

    def __init__(self, log: AppendLog, known: Mapping[RolloutKey, Trajectory]) -> None:
        self._log = log
        self.known = known

    def append(self, request: RolloutRequest, trajectory: Trajectory) -> None:
        """Writes a rollout that has just ended."""
        self._log.append({"request": request_name(request), "rollout": stored_trajectory(trajectory)})


def request_name(request: RolloutRequest) -> str:
    """Names a request by all that it asks for: the prompt with its tools and environment, and the seed."""
    return hashlib.blake2b(repr((request.prompt, request.seed)).encode(errors="replace"), digest_size=12).hexdigest()


def _opened(path: Path, header: Mapping[str, Any]) -> AppendLog:
    """This process's own file, begun anew where it is unreadable or of another policy."""
    try:
        log = AppendLog(path)
    except TaskFileError as error:
        rank_zero_warn(f"stored rollouts are left out, their file is damaged: {error}")
        path.unlink()
        log = AppendLog(path)
    if log.records and log.records[0] != header:
        log.close()
        path.unlink()
        log = AppendLog(path)
    if not log.records:
        log.append(header)
    return log


def _records_of_another(path: Path, header: Mapping[str, Any]) -> list[Any]:
    """Another process's rollouts; what it is writing at this moment, or did not finish, is left out."""
    records: list[Any] = []
    try:
        for _, record in read_json_lines(path):
            records.append(record)
    except TaskFileError:
        pass  # the end that was cut off
    return records[1:] if records[:1] == [header] else []


def _known(
    records: Sequence[Mapping[str, Any]], requests: Sequence[RolloutRequest], prompt_ids: PromptIds
) -> dict[RolloutKey, Trajectory]:
    numbers = {request_name(request): number for number, request in enumerate(requests)}
    prompts: dict[int, tuple[int, ...]] = {}
    known: dict[RolloutKey, Trajectory] = {}
    for record in records:
        number = numbers.get(record["request"])
        if number is None or record["rollout"]["sample"] >= requests[number].samples:
            continue
        if number not in prompts:
            prompts[number] = tuple(prompt_ids(requests[number].prompt))
        trajectory = read_trajectory(record["rollout"], prompts[number])
        known[number, trajectory.sample] = trajectory
    return known
