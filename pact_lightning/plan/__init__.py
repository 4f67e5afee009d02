"""Plan of a run: the memory it needs and the time it takes, from shapes alone and without weights.

A ``Recipe``, a policy on the meta device and lengths enter; bytes, operations, seconds and the settings that fit a card
leave.

Read ``run_plan`` first, which brings the others together: ``recipe`` (the settings), ``lengths`` (packs and passes of a
phase) and ``memory`` (bytes), which runs the real code under ``meta_device``. ``duration`` makes seconds of operations,
``fitting`` looks for the largest settings.
"""
