"""Lightning callbacks that a recipe lists under ``trainer.callbacks``.

A Trainer's hooks enter. Out come the supervision of each epoch (``annealing``), warnings about a collapsing policy
(``collapse``), a model folder at the end of a fit (``export``), and what people see while it runs: the newest rollouts
in the terminal (``live_panel``) and in loggers (``log_samples``), of which one is ours (``trackio_logger``).
"""
