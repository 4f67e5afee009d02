"""Command line: ``pact-lightning COMMAND``.

A command line enters, and a run, a table or a file leaves; a mistake ends in one sentence and exit status 2. This room
only reads, calls and prints: the work is done in the rooms below it.

Read ``main`` and ``command_table`` first, then ``errors``, which every command uses, and ``fit`` for Lightning's
commands. ``plan`` reads its own options and hands on to ``plan_report``, which gets the recipe from ``plan_recipe``;
``compare`` does so with ``compare_report`` and ``compare_study``, ``chat`` with ``chat_session``; ``report`` and
``view`` share ``report``. ``init`` fills in ``templates/``.
``tasks``, ``traces``, ``traces_generate`` and ``check_env`` are functions whose parameters are the options.

torch, Lightning and transformers take seconds to import, so a module here imports them only where its help does
without them.
"""
