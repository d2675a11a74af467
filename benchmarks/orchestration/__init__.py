"""Benchmark of what a quick start spends outside its stages' own work."""
