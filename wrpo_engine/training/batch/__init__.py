"""Rows, their layout in a forward pass, and micro-batches."""
