"""Generated schemas of the built-in kinds, and the programs that derive them."""
