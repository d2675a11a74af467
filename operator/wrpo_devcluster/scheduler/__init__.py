"""Scheduler of the embedded control plane, and its account of requested resources."""
