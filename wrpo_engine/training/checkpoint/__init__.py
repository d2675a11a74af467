"""Checkpoints: their format and their manager."""
