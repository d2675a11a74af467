"""Judges: requests to OpenAI-compatible endpoints, and the reading of their replies."""
