"""Types that the whole package shares: prompts, tasks, traces, trajectories, tool calls.

They hold data and check it, and import nothing but ``utils``. Read ``prompt`` (the view of a rollout), ``tool_call``,
``trajectory`` (the outcome of a rollout), then ``trace`` and ``task``, which no rollout may import.
"""
