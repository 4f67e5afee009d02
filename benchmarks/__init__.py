"""Benchmarks: the cost of the package beside what its users would take instead, one file per row.

``python -m benchmarks`` runs them all, each in a process of its own; ``make bench`` does that and is described in
``docs/benchmarks.md``. Nothing in the package imports this folder.
"""
