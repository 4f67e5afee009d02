"""Faults that are injected into real runs, and what happened: `make faults`."""
