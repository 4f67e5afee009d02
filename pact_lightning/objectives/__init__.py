"""Loss terms of PACT as pure functions of tensors.

Log-probabilities, advantages and masks of one prompt's group enter, ``[K, T]`` with ``K`` rollouts of at most ``T``
tokens, or those of one expert trace, ``[N]``. A scalar loss and detached metrics leave.

Read in this order: ``surrogate`` (eq. 4-8), ``kl``, ``annealing`` and ``component_sft`` (eq. 9-11), ``pact``
(eq. 12-14), ``importance``.
"""
