"""Merging of the weights of several models."""
