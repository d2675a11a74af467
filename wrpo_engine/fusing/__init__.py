"""Fusion of distributions of models with other vocabularies."""
