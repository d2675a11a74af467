"""Benchmarks: prompts, references, baseline answers and judge prompts."""
