"""Common parts of the benchmarks: worker processes, statistics, the machine, results and tables."""
