"""Samplers: token ids of many rows in, their next turns out. ``base`` has the protocols."""
