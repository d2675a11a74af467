"""Sampling: a model responds to prompts."""
