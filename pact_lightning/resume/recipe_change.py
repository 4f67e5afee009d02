"""Changes of a recipe between a checkpoint and the fit that goes on from it: what is taken over, what is refused."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from pact_lightning.utils.errors import shortened

MADE_BY = "made_by"
"""Key of a checkpoint under which it says what made it.

Its fields are ``module``, ``policy`` as it was loaded, ``recipe``, and ``whole_recipe``.
"""
ALLOW = "--allow_recipe_change"

_TAKEN_OVER = re.compile(
    r"(trainer(?!\.callbacks\.(?:AnnealingCallback|FeedbackCallback|MixtureCallback)\.)"
    r"|seed_everything"
    r"|model\.optimizer(?!\.bits)"
    r"|model\.(metrics|sampler|max_tokens_per_forward|packing|head_chunk|attention|offload_activations)"
    r"|model\.policy\.(gradient_checkpointing|attn_implementation)"
    r"|data\.(validation|test|predict|evaluation|prefill_tokens)"
    r"|data\.limits\.(rows|admit_every|tool_timeout_s)"
    r")(\.|$)"
)
"""Fields that do not decide what a phase learns from its tasks, or that decide it from the next step on."""
_UNTOLD = re.compile(
    r"trainer\.(default_root_dir|enable_\w+|(logger|callbacks)\..*\.?(save_dir|name|version|dirpath|folder))$"
)
"""Places of files, which change with every copied folder, and what is shown while a run works."""


class Change(NamedTuple):
    """A field that differs.

    Attributes:
        field: Its path, as in docs and sentences: ``model.policy.lora_r``.
        then: The checkpoint's value.
        now: The present one.
    """

    field: str
    then: Any
    now: Any

    @property
    def taken_over(self) -> bool:
        """True if a resumed run takes the present value; else it would train something else."""
        return _TAKEN_OVER.match(self.field) is not None

    def __str__(self) -> str:
        return f"{self.field} ({_shown(self.then)} -> {_shown(self.now)})"


def recipe_changes(then: Mapping[str, Any], now: Mapping[str, Any], *, whole: bool) -> list[Change]:
    """List what differs between two recipes.

    Args:
        then: The checkpoint's recipe: ``seed_everything``, ``model``, ``data`` and ``trainer``.
        now: The present one.
        whole: Whether both were read by the command; else one was made in Python, which knows of the policy and the
            optimiser alone.
    """
    before, after = dict(_fields(then)), dict(_fields(now))
    if not whole:
        shared = ("model.policy.", "model.optimizer.")
        before = {field: value for field, value in before.items() if field.startswith(shared)}
        after = {field: value for field, value in after.items() if field.startswith(shared)}
    names = [*before, *(field for field in after if field not in before)]
    return [
        Change(field, before.get(field), after.get(field))
        for field in names
        if before.get(field) != after.get(field) and not _UNTOLD.match(field)
    ]


def change_table(changes: Sequence[Change]) -> Table:
    """Make a table of changes: field, then, now, and what becomes of it."""
    table = Table(title="The recipe has changed since the checkpoint")
    for column in ("field", "then", "now", ""):
        table.add_column(column, overflow="fold")
    for change in changes:
        taken = "taken over" if change.taken_over else "another run"
        table.add_row(change.field, _shown(change.then), _shown(change.now), taken)
    return table


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a recipe; items of a list that are objects are named by their class."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            at = path if name in ("init_args", "dict_kwargs") else f"{path}.{name}".lstrip(".")
            yield from _fields(inner, at)
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) and "class_path" in item for item in value):
        seen: dict[str, int] = {}
        for item in value:
            name = str(item.get("class_path")).rpartition(".")[2] if isinstance(item, Mapping) else str(item)
            seen[name] = seen.get(name, 0) + 1
            yield from _fields(item, f"{path}.{name}" + (f"#{seen[name]}" if seen[name] > 1 else ""))
    elif value not in ({}, []):
        yield path, list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and len(value) <= 60 else shortened(value, 60)
