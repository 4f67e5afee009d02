"""Credit: the value of each turn of a rollout, and the advantages of a group.

In: the trajectories of one prompt and its :class:`~pact_lightning.types.task.Task`. Out: a
:class:`~pact_lightning.credit.group.Group` with a reward and an advantage per turn.

Read ``group`` (everything together), ``reward`` (rewards by name), ``rewards`` and ``matching`` (the paper's),
``advantages``; then ``answers`` and ``other_rewards`` (FTRL, ToolRL).
"""
