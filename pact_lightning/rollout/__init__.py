"""Rollouts: from prompts to trajectories. Nothing here may know a trace or a reference.

Prompt views of :mod:`pact_lightning.types.prompt` enter, trajectories of :mod:`pact_lightning.types.trajectory` leave.
Read ``engine`` first: it advances the rollouts and runs their tools. ``samplers`` draws their tokens. ``store`` keeps
finished rollouts on disk, and ``runner`` reuses them after an interruption. ``watch`` stops a run whose environments
have all failed, ``ahead`` makes a phase's rollouts beside the update before it, ``conversation`` is somebody who types
the user's turns, and ``openai_format`` writes trajectories for other tools.
"""
