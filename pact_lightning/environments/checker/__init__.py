"""Check of an environment before training.

Read ``checker`` (the run), ``schemas`` (tools and made-up arguments), ``findings`` (answers).
"""
