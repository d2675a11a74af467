"""Reading model directories that others wrote: what is damaged, missing or of another kind is refused by name."""
