"""Prompt-only rollouts. Nothing here may import ``traces`` or a task's reference."""
