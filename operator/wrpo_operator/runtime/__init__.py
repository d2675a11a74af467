"""Input and output of the operator: watches, the reconciler, the Lease, progress posts and metrics."""
