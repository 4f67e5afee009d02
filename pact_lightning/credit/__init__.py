"""Credit: matching, rewards, advantages. Pure functions over plain values."""
