"""What is changed in a write, or refused, after its author has the right to it."""
