"""Progress of ``make bench``: one line that is overwritten on a terminal, now and then a line in a log file."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import TextColumn

_BETWEEN_LOG_LINES = 30.0


class Progress:
    """Which row runs, which of its rounds, how long it has all taken, and what is left by estimate."""

    def __init__(self, expected: Mapping[str, float], console: Console) -> None:
        """Begin.

        Args:
            expected: Seconds that each row should take, in the order in which they run.
            console: Where to write; progress is no result, so this is stderr.
        """
        self._expected = dict(expected)
        self._console = console
        self._begun = self._row_begun = time.monotonic()
        self._last_line = -_BETWEEN_LOG_LINES
        self._row, self._doing = "", ""
        column = TextColumn("{task.fields[line]}", style="dim", markup=False)
        # What is printed meanwhile goes above the line, but not where stdout is a file.
        above = sys.stdout.isatty()
        self._bar = Bar(column, console=console, transient=True, disable=not console.is_terminal, redirect_stdout=above)
        self._task = self._bar.add_task("", line="")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, row: str) -> None:
        """Show that a row begins."""
        self._row, self._row_begun = row, time.monotonic()
        self.tell("set-up")

    def tell(self, doing: str) -> None:
        """Show what the row does: its set-up, a round."""
        self._doing = doing
        line = self.line()
        self._bar.update(self._task, line=line)
        if self._bar.disable and time.monotonic() - self._last_line >= _BETWEEN_LOG_LINES:
            self._last_line = time.monotonic()
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def line(self) -> str:
        """Return the line of progress."""
        names = list(self._expected)
        number = names.index(self._row)
        now = time.monotonic()
        left = max(0.0, self._expected[self._row] - (now - self._row_begun))
        left += sum(self._expected[name] for name in names[number + 1 :])
        place = f"{number + 1}/{len(names)} {self._row}, {self._doing}"
        return f"{place}; {clock(now - self._begun)} elapsed, about {clock(left)} left"


def clock(seconds: float) -> str:
    """Return minutes and seconds as ``12:05``."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
