"""Faults that are injected into real runs, and what happened: `make faults`."""

import rooms  # noqa: F401  # puts the rooms on the path
