"""Lightning callbacks that a recipe lists under ``trainer.callbacks``.

A Trainer's hooks enter. Out come the supervision of each epoch (``annealing``), warnings about a collapsing policy
(``collapse``) and a model folder at the end of a fit (``export``).
"""
