"""Data sets of the Hugging Face hub, or folders in the same shape, as tasks."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from pact_lightning.tasks.ftrl.row import ftrl_task
from pact_lightning.tasks.jsonl import Scanned, scan_records, tasks_of
from pact_lightning.tasks.record import task_from_json, without_table_nulls
from pact_lightning.tasks.toolhop.tasks import toolhop_task
from pact_lightning.types.task import Task
from pact_lightning.utils.errors import TaskFieldError, typed
from pact_lightning.utils.hub import use_cache_where_unreachable
from pact_lightning.utils.json_lines import JsonLine
from pact_lightning.utils.json_text import JsonTextError, parse_json

_log = logging.getLogger(__name__)

HubFormat = Literal["pact", "ftrl", "toolhop"]
"""Format of a row: the package's own task, FTRL's (and MatchTIR's) row, or ToolHop's."""
_NESTED = ("messages", "tools", "environment", "follow_ups", "reference", "trace", "metadata")


class HubError(OSError):
    """Error of a data set that cannot be had; the message says why and what to do."""


class HubTasks:
    """Tasks from the rows of a data set that the ``datasets`` library can load.

    Rows of format ``pact`` have the fields of a task file; each field but ``id`` and ``kind`` may also be a string that
    holds it as JSON, and a field that is null counts as absent. Tables give every object the keys of all rows, with
    null where a row has no such key; these nulls are taken out, and how many there are is logged. Those that a tool's
    schema takes stay. An object that was stored as JSON (a string, or the ``Json`` type) comes back as it was.

    Args:
        dataset: Id on the hub (``owner/name``), or a local folder of JSON Lines, CSV or Parquet files.
        split: The split, such as ``train`` or ``test[:100]``.
        config: Name of the data set's configuration, where it has several.
        revision: Branch, tag or commit on the hub; name one to make a run repeatable.
        format: Format of a row, see :data:`HubFormat`.
        format_args: Further arguments of the format: for ``ftrl`` those of
            :func:`pact_lightning.tasks.ftrl.row.ftrl_task` (``distractors, system_prompt, name``), for ``toolhop``
            those of :func:`pact_lightning.tasks.toolhop.tasks.toolhop_task` (``system_prompt, name``).
        limit: Load at most this many tasks, from the start; ``None`` for all.
    """

    def __init__(
        self,
        dataset: str,
        split: str = "train",
        *,
        config: str | None = None,
        revision: str | None = None,
        format: HubFormat = "pact",
        format_args: dict[str, Any] | None = None,
        limit: int | None = None,
    ) -> None:
        if format not in get_args(HubFormat):
            raise ValueError(f"there is no format {format!r}; use one of {', '.join(get_args(HubFormat))}")
        self.format_args = dict(format_args or {})
        unknown = sorted(set(self.format_args) - set(_ARGUMENTS[format]))
        if unknown:
            known = ", ".join(_ARGUMENTS[format]) or "none"
            raise ValueError(f"the format {format} has no argument {unknown[0]!r}; known: {known}")
        self.dataset = dataset
        self.split = split
        self.config = config
        self.revision = revision
        self.format: HubFormat = format
        self.limit = limit

    def load(self) -> Sequence[Task]:
        """Load the data set, over the network where it is not on this machine yet, and check its rows.

        Raises:
            ImportError: ``datasets`` is not installed.
            HubError: There is no such data set, or it cannot be reached.
            TaskFileError: A row is not well formed; the error names it, counted from 0.
        """
        return list(islice(tasks_of(self.scan()), self.limit))

    def scan(self) -> Iterator[Scanned]:
        """Yield every row as a task or its mistakes.

        Raises:
            ImportError: ``datasets`` is not installed.
            HubError: There is no such data set, or it cannot be reached.
        """
        place = f"{self.dataset} ({self.split})"
        lines = (JsonLine(index, row) for index, row in enumerate(self._rows()))
        yield from scan_records(place, lines, self._read, unit="row")

    def _read(self, index: int, row: Any) -> Task:
        if self.format == "ftrl":
            return ftrl_task(index, row, **self.format_args)
        if self.format == "toolhop":
            return toolhop_task(index, row, **self.format_args)
        return task_from_json(without_table_nulls(_decoded(row)))

    def _rows(self) -> Iterator[Any]:
        rows = self._dataset()
        taken_out = 0
        # Of tools and arguments the schemas say more than the table; the reader of a task asks them.
        kept = ("tools", "arguments") if self.format == "pact" else ()
        for row in rows:
            taken_out += without_nulls(row, rows.features)[1]
            yield without_nulls(row, rows.features, kept)[0]
        if taken_out:
            _log.info(
                "%s: %d nulls that the table put into objects were taken out, but for those that a tool's schema takes",
                self.dataset,
                taken_out,
            )

    def _dataset(self) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise ImportError("data sets of the hub need `datasets`: pip install 'pact-lightning[hub]'") from error
        # What the library raises where a data set, a split or the network is missing; its messages name it.
        failures = (OSError, ValueError, datasets.exceptions.DatasetsError)
        if not Path(self.dataset).exists():
            is_offline = use_cache_where_unreachable()
            datasets.config.HF_HUB_OFFLINE |= is_offline  # its own copy
        try:
            return datasets.load_dataset(self.dataset, self.config, split=self.split, revision=self.revision)
        except failures as error:
            # The error of a failed conversion says only that it failed; its cause says why.
            reasons = [str(e).strip().partition("\n")[0] for e in (error, error.__cause__) if e is not None]
            told = ": ".join(reason.rstrip(".:") for reason in reasons if reason) or type(error).__name__
            raise HubError(
                f"the data set {self.dataset!r} (split {self.split!r}) cannot be loaded: {told}; check its name, or "
                "download it where there is a network and give the folder"
            ) from error


_ARGUMENTS: dict[HubFormat, tuple[str, ...]] = {
    "pact": (),
    "ftrl": ("distractors", "system_prompt", "name"),
    "toolhop": ("system_prompt", "name"),
}


def without_nulls(value: Any, feature: Any, kept: Collection[str] = ()) -> tuple[Any, int]:
    """Take the null members out of objects that a table stores column by column.

    Args:
        value: A value of a row, or the row.
        feature: Its type in the data set; a mapping is an object stored column by column, a type with a ``feature``
            is a list.
        kept: Keys whose values stay as they are, unless they are null.

    Returns:
        The value, and the number of members taken out.
    """
    if isinstance(feature, Mapping) and isinstance(value, Mapping):
        inner = {
            key: (item, 0) if key in kept else without_nulls(item, feature.get(key), kept)
            for key, item in value.items()
            if item is not None
        }
        dropped = sum(item is None for item in value.values())
        return {key: item for key, (item, _) in inner.items()}, dropped + sum(count for _, count in inner.values())
    if isinstance(value, list) and getattr(feature, "feature", None) is not None:
        items = [without_nulls(item, feature.feature, kept) for item in value]
        return [item for item, _ in items], sum(count for _, count in items)
    return value, 0


def _decoded(row: Any) -> dict[str, Any]:
    """Return a row of format ``pact`` with the fields that hold JSON read."""
    record: dict[str, Any] = dict(typed(row, dict, "(the row)"))
    for field in _NESTED:
        if isinstance(record.get(field), str):
            try:
                record[field] = parse_json(record[field])
            except JsonTextError as error:
                raise TaskFieldError(field, str(error)) from error
    return record
