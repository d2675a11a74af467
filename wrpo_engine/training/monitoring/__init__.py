"""Metrics, trackers, throughput and the hang watchdog."""
