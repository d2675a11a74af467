"""Kinds, their schemas, and operations on values by schema: encoding, comparison, sets of fields."""
