"""Environments: objects whose tools a rollout calls.

A task's prompt and a seed enter by ``reset``, tool calls by ``call``; observations leave as ``ToolResult``.

Read ``protocol`` first, then ``tool_calls`` (calls by threads, with time limits) and ``tool_output`` (values and
exceptions as text). The environments: ``functions`` (with ``function_schema``), ``trl_style``, ``mcp``, ``sandbox``.
``checker`` checks any of them.
"""
