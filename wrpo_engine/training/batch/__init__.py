"""Token rows, sequence layouts and micro-batches."""
