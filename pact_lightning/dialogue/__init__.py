"""Dialogues as token segments: components, rendering, tool-call parsing."""
