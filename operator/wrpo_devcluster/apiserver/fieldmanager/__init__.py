"""Who manages which field, and the merging of patches and applied configurations."""
