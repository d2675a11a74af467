"""Stored objects, their history, and the selection among them by labels and fields."""
