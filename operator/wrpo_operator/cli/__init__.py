"""The `wrpo` command."""
