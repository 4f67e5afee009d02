"""Teacher: tasks with expert traces, from a stronger model or from recorded conversations.

Two ways lead to a trace. ``generate`` lets a model behind an endpoint try tasks: read ``endpoint``, ``turn``,
``attempt``, ``generate``, ``generation_report``. ``build`` imports recorded conversations: read ``importers``,
``build``, ``report``, ``stored``. Either way only traces that verify are kept (``traces/verdict.py``).

For hard turns a language model can replace the segmentation rules: ``annotator`` asks it, ``annotation`` holds prompt
and answer.
"""
