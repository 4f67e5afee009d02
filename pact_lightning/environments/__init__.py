"""Environments: where tools run."""
