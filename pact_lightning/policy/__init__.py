"""Policy: a language model that is loaded, packed, attended and scored.

A ``PolicyConfig`` and blocks of token ids enter; log-probabilities and their gradients leave. Nothing here knows tasks,
traces or rewards.

Read ``loading`` first, whose parts are ``model_files``, ``quantised``, ``text_layers`` and ``experts``; then
``packing`` (blocks into flat rows), ``attention`` (how a flat row attends) and ``logprobs``, which brings them
together; ``linear_logprobs`` is its head. ``reference`` and ``sharding`` lend other bodies of the policy,
``state_dict`` holds what is saved, ``memory`` and ``flops`` what it costs, ``threads`` how many cores it takes.
``smollm2`` is a command of its own.
"""
