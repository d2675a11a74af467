"""Fetching: models and data sets are downloaded from a hub into the storage."""
