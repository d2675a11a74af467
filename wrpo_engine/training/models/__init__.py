"""Policy models: loading, adapters, attention and log-probabilities."""
