"""Collectives, rendezvous and sequential work of single ranks."""
