"""Storage: objects, their history, and selection by labels and fields."""
