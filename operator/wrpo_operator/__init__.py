"""Operator that runs WRPO experiments on Kubernetes, and the `wrpo` command."""
