"""Memory and speed of merging."""
