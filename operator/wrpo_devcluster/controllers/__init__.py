"""Controllers of the embedded control plane, each with a pure decision and a loop that carries it out."""
