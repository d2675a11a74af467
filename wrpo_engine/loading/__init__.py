"""Readers of model directories. Errors name what is damaged, missing or of another kind."""
