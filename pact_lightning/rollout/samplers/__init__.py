"""Samplers: what turns token ids into the next turn's token ids."""
