"""The REST service: what it answers, how fast, and what reaches it that should not."""
