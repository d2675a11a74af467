"""Training data: tokenisation, token caches, plans and held-out rows."""
