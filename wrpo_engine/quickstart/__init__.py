"""Small real models and prompts for the quickstart, built from packages of the Python registry."""
