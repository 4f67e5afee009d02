"""Commands of ``pact-lightning`` beside those of Lightning, one module each; imported when they are called."""

from typing import NamedTuple


class Command(NamedTuple):
    """Where a command is, and what it is for.

    Attributes:
        module: The module whose ``main(arguments)`` runs it.
        summary: One line for the help.
    """

    module: str
    summary: str


COMMANDS: dict[str, Command] = {
    "tasks": Command("pact_lightning.commands.tasks", "bring tasks into a task file, validate one, say what is in it"),
    "traces": Command("pact_lightning.commands.traces", "import, verify, segment, show and generate expert traces"),
    "check-env": Command("pact_lightning.commands.check_env", "check an environment of your own before training"),
    "plan": Command("pact_lightning.commands.plan", "tell what a run will need and how long it will take"),
}
"""The commands by name."""
