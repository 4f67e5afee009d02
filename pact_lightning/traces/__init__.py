"""Expert traces: segmentation into chunks, levels, tokens, and their verification by replay.

In: an :class:`~pact_lightning.types.trace.ExpertTrace` and its task. Out: the trace with typed chunks, the active
prefix of each turn, and a verdict on whether to train on it. A rollout may not import this package.

Read ``segmentation`` (reasoning to chunks), ``levels`` (chunks to prefixes), ``tokens`` (a trace as training data),
``hard_turns`` (turns for an annotator, quality flags); then ``leak``, ``replay`` and ``verdict``.
"""
