"""Sandbox for tools that are Python snippets from a data file.

Read ``code_tools`` (the environment), ``sandbox`` (guarantees, pool), ``worker_process`` and ``worker`` (the two sides
of a call), ``answers``; then the layers ``limits``, ``namespaces``, ``files``, ``system_calls``, ``refusals``, and
``libraries`` (what may be read).
"""
