"""What only a GPU shows: layers of an 8B model, training next to TRL, sampling, scoring, a soak test, checkpoints."""
