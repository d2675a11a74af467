"""Decisions of the operator as pure functions: the graph of stages, attempts, retries, deadlines and status."""
