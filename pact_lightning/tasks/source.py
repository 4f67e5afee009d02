"""Where tasks come from: one method that loads them all."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from pact_lightning.tasks.schema import Task


@runtime_checkable
class TaskSource(Protocol):
    """Anything that loads tasks; recipes name one by ``class_path`` and ``init_args``."""

    def load(self) -> Sequence[Task]:
        """Reads and checks every task.

        Raises:
            TaskFileError: A file holds a task that is not well formed.
        """
        ...
