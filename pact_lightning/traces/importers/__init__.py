"""Conversations of a teacher in the formats that users have: pure functions from a parsed record to a conversation."""
