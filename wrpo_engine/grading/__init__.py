"""Scores of a system's answers by a reward."""
