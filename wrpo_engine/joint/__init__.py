"""Joint decoding of several models."""
