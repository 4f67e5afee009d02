"""Checkpoints and interruptions: a run that is stopped goes on as if nothing had been.

In: a Trainer, its signals, its checkpoint files. Out: files written whole, and the one to go on from.
Read in this order:

1. ``interruption``: signals, and errors that stop a run; when it can be saved, and how it says so.
2. ``exact_resume``: what Lightning loses at which hook, and how it is put back.
3. ``metrics_file``: ``metrics.csv`` without lost, doubled or torn rows.
4. ``checkpoint_files`` and ``last_checkpoint``: whole files, and the newest of them.
5. ``lightning_internals``: every private field of Lightning's that is used.
"""
