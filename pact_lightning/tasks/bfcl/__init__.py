"""Berkeley Function Calling Leaderboard, multi-turn.

Read ``package``, ``rows``, ``environment``, ``tasks``, ``score``.
"""
