"""Field ownership, and the merging of patches and applied configurations."""
