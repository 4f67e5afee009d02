"""ToolHop: ``tasks`` reads its rows, ``metric`` scores rollouts as upstream does."""
