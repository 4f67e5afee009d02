"""Bundled world: tasks, tools and expert traces made from a seed.

Read ``world``, ``questions``, ``tools``, ``expert``, ``tasks``.
"""
