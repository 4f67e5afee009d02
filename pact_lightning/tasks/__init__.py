"""Tasks from files, data sets and benchmarks.

A file's path or a data set's name enters, :class:`~pact_lightning.types.task.Task` leaves. Read in this order:

1. ``fields`` and ``record``: the wire format, its JSON Schema and its checks.
2. ``jsonl``: task files, and the scan that every source shares.
3. ``ftrl``, ``toolhop``, ``bfcl``, ``bundled``: one benchmark each; ``hub`` and ``trl_rows``: data sets.
4. ``importing``, ``consistency``, ``statistics``: the work of ``pact-lightning tasks``.
"""
