"""Checks for faults in training data that training does not detect."""
