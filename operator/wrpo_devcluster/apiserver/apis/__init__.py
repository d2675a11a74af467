"""Common types of the API server: requests, their options, errors."""
