"""Table of the commands of ``pact-lightning``, with a line of help for each."""

from typing import NamedTuple

DESCRIPTION = "Trains and scores agents that use tools over several turns, by PACT"

VERBS = {
    "fit": "train with a recipe: -c recipe.yaml, more -c for overlays, and any field as an option",
    "validate": "score a policy or a checkpoint on the validation tasks",
    "test": "score it on the test tasks",
    "predict": "roll out the prediction tasks and write the trajectories",
}
"""Lightning's commands, which share their options."""


class Command(NamedTuple):
    """A command beside Lightning's; its module is imported when it is called.

    Attributes:
        module: The module whose ``main(arguments)`` runs it.
        summary: One line for the help.
    """

    module: str
    summary: str


COMMANDS: dict[str, Command] = {
    "init": Command("pact_lightning.cli.init", "make a folder with tools, tasks, traces, a recipe and a test"),
    "tasks": Command("pact_lightning.cli.tasks", "convert tasks to a task file, validate one, or show its statistics"),
    "traces": Command("pact_lightning.cli.traces", "import, verify, segment, show or generate expert traces"),
    "chat": Command("pact_lightning.cli.chat", "talk to the agent with its tools, or replay a task"),
    "check-env": Command("pact_lightning.cli.check_env", "check an environment of your own before training"),
    "compare": Command("pact_lightning.cli.compare", "compare finished runs, or run a study of methods and seeds"),
    "report": Command("pact_lightning.cli.report", "write curves, scores and trajectories of runs as one HTML page"),
    "view": Command("pact_lightning.cli.view", "show the same page in a browser, live while a run goes on"),
    "export-log": Command("pact_lightning.cli.export_log", "write a run's rollouts as logs of another tool: Inspect"),
    "export": Command("pact_lightning.cli.export", "write a run's policy as a model, an adapter or a GGUF file"),
    "plan": Command("pact_lightning.cli.plan", "estimate memory and time of a run from its recipe"),
}
"""The other commands by name."""
