"""Processes of the checks: started, watched, and ended at their limits."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.check_gpu.checks import Check
from benchmarks.check_gpu.child import LEFT_OUT
from benchmarks.check_gpu.report import NOT_RUN, PASSED, RUNNING, Outcome, ask_card

_TELL_EVERY_S = 15.0
_GRACE_S = 3.0
_ERROR = re.compile(r"^(?:E +)?([\w.]*(?:Error|Exception|Interrupt|Exit|Failed)\b.*|Failed: .*|Fatal Python error: .*)")


class _Process:
    """One running check; its outcome is kept up to date by :meth:`ended`."""

    def __init__(self, outcome: Outcome, folder: Path, limit: float, given: Mapping[str, str], *, cpu: bool) -> None:
        self.outcome, self.limit, self.began = outcome, limit, time.monotonic()
        name = outcome.check.name
        self.log, self.figures = folder / f"{name}.log", folder / f"{name}.json"
        self.figures.unlink(missing_ok=True)
        self._told = self._asked = self.began
        command = [sys.executable, "-u", "-m", "benchmarks.check_gpu.child", name, str(self.figures), f"{limit:.0f}"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *(["--cpu"] if cpu else [])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | given,
                start_new_session=True,
            )

    def ended(self, *, watch_card: bool) -> bool:
        """Look after the process; return whether it is over."""
        now = time.monotonic()
        self.outcome.seconds = now - self.began
        if watch_card and now - self._asked >= 1:
            self._asked = now
            self._note_memory()
        status = self.process.poll()
        if status is None and now - self.began > self.limit:
            self.end()
            self._close(f"fail: over its limit of {self.limit:.0f} s; {_last_line(self.log)}")
        elif status is None:
            if now - self._told >= _TELL_EVERY_S:
                self._told = now
                _tell(f"{self.outcome.check.name}, {now - self.began:.0f} s: {_last_line(self.log)}")
            return False
        else:
            self.end()  # what it may have left behind
            self._close(PASSED if status == 0 else f"fail: {first_error(self.log, status)}")
        return True

    def end(self) -> None:
        """End the process and all that it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                return
            try:
                self.process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                continue

    def _close(self, result: str) -> None:
        try:
            self.outcome.figures = json.loads(self.figures.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.outcome.figures = {}
        why = self.outcome.figures.get(LEFT_OUT)
        self.outcome.result = result = f"{NOT_RUN}: {why}" if result == PASSED and why else result
        _tell(f"{self.outcome.check.name}: {result} ({self.outcome.seconds:.0f} s)")

    def _note_memory(self) -> None:
        answer = ask_card("memory.used")
        if answer is not None and answer.isdigit():
            self.outcome.card_gib = max(self.outcome.card_gib or 0.0, int(answer) / 1024)


def run_checks(
    checks: Sequence[Check],
    folder: Path,
    seconds: float,
    given: Mapping[str, str],
    changed: Callable[[Sequence[Outcome]], None],
    *,
    cpu: bool,
    jobs: int,
) -> list[Outcome]:
    """Run checks in their order, those that may side by side, until the time is over.

    Args:
        checks: The checks.
        folder: Folder of logs and figures.
        seconds: Time for all of them.
        given: Environment variables of the processes.
        changed: Called whenever a check begins or ends, with all outcomes so far.
        cpu: Whether tiny shapes are run on the CPU.
        jobs: Most checks side by side.
    """
    stop_at = time.monotonic() + seconds
    outcomes = [Outcome(check, f"{NOT_RUN}: yet") for check in checks]
    waiting, running = list(outcomes), list[_Process]()
    card = not cpu and ask_card("memory.used") is not None
    try:
        while waiting or running:
            for process in [process for process in running if process.ended(watch_card=card)]:
                running.remove(process)
                changed(outcomes)
            for outcome in _startable(waiting, running, jobs):
                waiting.remove(outcome)
                left = stop_at - time.monotonic()
                if left < (5 if cpu else outcome.check.seconds):
                    outcome.result = f"{NOT_RUN}: {max(left, 0):.0f} s were left, it takes {outcome.check.seconds}"
                    _tell(f"{outcome.check.name}: {outcome.result}")
                else:
                    outcome.result = RUNNING
                    _tell(f"{outcome.check.name}: begins; {outcome.check.what}")
                    limit = min(outcome.check.limit * (4 if cpu else 1), left)
                    running.append(_Process(outcome, folder, limit, given, cpu=cpu))
                changed(outcomes)
            time.sleep(0.1)
    finally:
        for process in running:
            process.end()
    return outcomes


def _startable(waiting: Sequence[Outcome], running: Sequence[_Process], jobs: int) -> Iterator[Outcome]:
    """Yield the next check if it may begin now."""
    for outcome in waiting[:1]:
        beside = [process.outcome.check for process in running]
        if not beside or (len(beside) < jobs and not outcome.check.alone and not any(check.alone for check in beside)):
            yield outcome


def first_error(log: Path, status: int) -> str:
    """Return the first line of the error that ended a check, from its log.

    Args:
        log: The check's log.
        status: Its exit status, negative for a signal.
    """
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else str(-status)
        return f"killed by {name}; {_last_line(log)}"
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        found = _ERROR.match(line)
        if found:
            return found.group(1)[:300]
    return f"exit status {status}; {_last_line(log)}"


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4000))
        lines = file.read().decode("utf-8", "replace").replace("\r", "\n").split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "nothing was printed")


def _tell(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)
