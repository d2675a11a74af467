"""How the operator does with many experiments."""
