"""The contract between operator and engine: what both may import. Imports no torch."""
