"""Policy: a language model that is loaded, packed, attended and scored.

A ``PolicyConfig`` and blocks of token ids enter; log-probabilities and their gradients leave. Nothing here knows tasks,
traces or rewards.

Read ``loading`` first, then ``packing`` (blocks into flat rows), ``attention`` (how a flat row attends) and
``logprobs``, which brings the three together; ``linear_logprobs`` is its head. ``reference`` and ``sharding`` lend
other bodies of the policy, ``state_dict`` holds what is saved, ``memory`` and ``flops`` what it costs, ``threads`` how
many cores it takes. ``smollm2`` is a command of its own.
"""
