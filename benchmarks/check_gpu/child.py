"""One check, in the process that ``benchmarks.check_gpu`` starts for it."""

import argparse
import faulthandler
import importlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.check_gpu.checks import CHECKS, Check

LEFT_OUT = "left out"
"""Figure of a check that found nothing to try."""


class Figures:
    """Figures of a check, on disk as soon as they are known.

    Attributes:
        card: Whether the check runs on a card, and not with tiny shapes on a CPU.
    """

    def __init__(self, path: Path, *, card: bool) -> None:
        self.card = card
        self._path = path
        self._found: dict[str, Any] = {}
        self._failed: list[str] = []

    def note(self, name: str, value: Any) -> None:
        """Print and keep a figure."""
        print(f"{name}: {value}", flush=True)
        self._found[name] = value
        self._path.write_text(json.dumps(self._found), encoding="utf-8")

    def leave_out(self, why: str) -> NoReturn:
        """End the check, which cannot be tried here; the report names it as not run."""
        self.note(LEFT_OUT, why)
        sys.exit(0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Run a part after whose failure the others go on; the check fails at its end."""
        print(f"-- {name}", flush=True)
        try:
            yield
        except Exception as error:  # noqa: BLE001  # told, and the check fails; a card is lent seldom
            sys.excepthook(type(error), error, error.__traceback__)
            line = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            self._failed.append(name)
            self.note(f"{name}: failed", line[:300])
        _free_memory()

    def close(self) -> int:
        """Return the exit status: that of a failure if a part failed."""
        if self._failed:
            print(f"failed: {', '.join(self._failed)}", flush=True)
        return 1 if self._failed else 0


def main() -> int:
    """Run the check that is named; return the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("figures", type=Path)
    parser.add_argument("limit", type=float)
    parser.add_argument("--cpu", action="store_true")
    given = parser.parse_args()
    # So that the log of a check that hangs shows where.
    faulthandler.dump_traceback_later(max(given.limit - 2, 1))
    (check,) = [check for check in CHECKS if check.name == given.name]
    figures = Figures(given.figures, card=not given.cpu)
    if check.tests:
        return _run_tests(check, figures)
    module = importlib.import_module(f"benchmarks.check_gpu.{check.module}")
    module.run(figures, *([check.argument] if check.argument else []))
    return figures.close()


def _run_tests(check: Check, figures: Figures) -> int:
    import pytest

    class Counted:
        """Plugin that counts the tests by how they ended."""

        def __init__(self) -> None:
            self.ends: dict[str, int] = {}

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.when == "call" or report.failed:
                self.ends[report.outcome] = self.ends.get(report.outcome, 0) + 1

    counted = Counted()
    marks = "gpu" if figures.card else "not gpu"
    options = ["-v", "--tb=short", "-p", "no:cacheprovider", "--timeout=120", "--slow", "--durations=8"]
    status = int(pytest.main([*check.tests, "-m", marks, *options], plugins=[counted]))
    for outcome, count in sorted(counted.ends.items()):
        figures.note(f"tests {outcome}", count)
    return status


def _free_memory() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    try:
        ended = main()
    finally:
        sys.stdout.flush()
    # Past whatever would wait at the end of an ordinary process: threads, and compilers' helpers.
    os._exit(ended)
