"""Time of the statistics of systems, benchmarks and resamples."""
