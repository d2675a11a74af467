"""Scoring: a reward model, a function or an endpoint rates responses."""
