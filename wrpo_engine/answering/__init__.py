"""Answers of models to the items of benchmarks."""
