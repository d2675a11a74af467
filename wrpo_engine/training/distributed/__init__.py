"""Collectives, rendezvous and work that one rank does for all."""
