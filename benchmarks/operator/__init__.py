"""Scale of the operator with many experiments."""
