"""Scoring against a loop over single responses: processor time on the same pairs in one run, equal scores."""
