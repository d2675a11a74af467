"""Sizes of stages: accelerators, parallelism and memory from the facts of a model and of a cluster. Pure."""
