"""Comparison of finished experiments on their held-out prompts, with the uncertainty of every number."""
