"""Checkpoint format and checkpoint manager."""
