"""Tools of MCP servers.

Read ``environment``, ``connection`` (threads, restarts, limits), ``server`` (specification, outages, conversions),
``leniency`` (answers that keep less than the protocol).
"""
