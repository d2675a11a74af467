"""Who may do what: roles and service account tokens."""
