"""Kinds and their schemas, and values by them: encoding, comparison, sets of fields."""
