"""Looks for faults in training data that training would not notice."""
