"""Scoring against a loop of one response at a time: processor time on the same pairs in one run, scores compared."""
