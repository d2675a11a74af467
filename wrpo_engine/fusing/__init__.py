"""Explicit fusion: distributions of several models over one corpus, aligned with the target's tokens."""
