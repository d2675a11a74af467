"""Kubernetes' CEL: syntax, types, functions, evaluation and cost."""
