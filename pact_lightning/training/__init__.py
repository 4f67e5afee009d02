"""Training on Lightning: modules, data modules, and the phase that drives them.

In: task sources, a policy, a Trainer. Out: a trained adapter, trajectories, metrics. Read in this order:

1. ``phase``: an epoch is a phase, a batch is an optimiser step; ``phase_report``: what is told of it.
2. ``pact_module`` and ``rollout_datamodule``: PACT.
3. ``policy_module`` and ``task_datamodule``: the bases of every training method.
4. ``evaluation``: validation, test and prediction; ``chat``: conversations in a prediction's place.
5. ``sft_module`` and ``trace_datamodule``: supervised fine-tuning.
6. ``functions``: fit, evaluate and roll out from Python; ``trainer_checks``: Trainer settings that are refused.
"""
