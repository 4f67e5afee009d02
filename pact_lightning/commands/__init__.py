"""Commands of ``pact-lightning`` beside those of Lightning, one module each; imported when they are called."""

COMMANDS: dict[str, str] = {
    "tasks": "pact_lightning.commands.tasks",
    "traces": "pact_lightning.commands.traces",
    "check-env": "pact_lightning.commands.check_env",
}
"""By name the module whose ``main(arguments)`` runs the command."""
