"""Tasks: their schema and where they come from."""
