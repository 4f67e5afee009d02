"""Metrics over rollouts, as torchmetrics modules.

Trajectories and their tasks enter; scores by name leave, summed over processes.

Read ``solve`` (FTRL's solve rates, answers), ``tool_use``, ``evaluation`` (all of them together, and the base of own
metrics), ``turn_reward`` (one of these), then ``rollout_figures`` (metrics of a training phase).
"""
