"""The update: from the groups of a batch to one optimiser step.

In: groups (rollouts with credit, and the task's trace). Out: gradients, a step, its figures. Read in this order:

1. ``context``: the prompt ``x`` and the privileged context ``c^h``.
2. ``layout``: prompts as blocks of a packed forward.
3. ``prompt_loss``: log-probabilities to a prompt's loss; ``sampler_correction``: weights of its tokens.
4. ``gradient``: one gradient over packs and processes.
5. ``optimizer``: AdamW, its schedule, the clipped step.
6. ``step_metrics`` and ``performance``: figures of a step and of a phase.
"""
