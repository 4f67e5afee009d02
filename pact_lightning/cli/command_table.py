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
    "tasks": Command("pact_lightning.cli.tasks", "bring tasks into a task file, validate one, say what is in it"),
    "traces": Command("pact_lightning.cli.traces", "import, verify, segment, show and generate expert traces"),
    "check-env": Command("pact_lightning.cli.check_env", "check an environment of your own before training"),
    "plan": Command("pact_lightning.cli.plan", "tell what a run will need and how long it will take"),
}
"""The commands by name."""


DESCRIPTION = "Trains and scores agents that use tools over several turns, by PACT"
VERBS = {
    "fit": "train by a recipe: -c recipe.yaml, further -c for overlays, and any field of it as an option",
    "validate": "score a policy or a checkpoint on the validation tasks",
    "test": "score it on the test tasks",
    "predict": "roll out the prediction tasks and write the trajectories",
}
"""Lightning's commands, which share their options."""
