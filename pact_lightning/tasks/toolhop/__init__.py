"""toolhop."""
