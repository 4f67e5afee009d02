"""The policy: loading, packing, attention, log-probabilities, the frozen reference."""
