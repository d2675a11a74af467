"""Inspection of a model: size, shape and faults, without its weights."""
