"""What every benchmark shares: workers in their own processes, statistics, the machine, results and tables."""
