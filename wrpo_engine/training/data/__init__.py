"""Training data: tokenisation, token caches, batch plans and held-out rows."""
