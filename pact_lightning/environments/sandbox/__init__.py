"""Sandbox for tools that are Python snippets from a data file.

Read ``code_tools`` (the environment), ``sandbox`` (guarantees, processes), ``worker``, ``limits``, ``files``.
"""
