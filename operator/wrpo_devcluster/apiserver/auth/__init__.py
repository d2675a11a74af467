"""Authentication and authorization: service account tokens and roles."""
