"""Rollouts on disk while their phase lasts: what an interrupted phase has finished is read and not rolled out again.

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

from pact_lightning.append_log import AppendLog
from pact_lightning.rollout.engine import RolloutKey, RolloutRequest
from pact_lightning.rollout.stored import read_trajectory, stored_trajectory
from pact_lightning.rollout.trajectory import Trajectory
from pact_lightning.tasks.checks import TaskFileError
from pact_lightning.tasks.json_lines import read_json_lines
from pact_lightning.tasks.prompt import PromptView

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
