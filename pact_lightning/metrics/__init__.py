"""Metrics over trajectories, as torchmetrics modules."""
