"""Reference log-probabilities and checks of agreement."""
