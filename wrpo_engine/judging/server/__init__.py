"""A judge that a reward decides for, as an OpenAI-compatible server."""
