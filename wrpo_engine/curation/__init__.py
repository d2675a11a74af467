"""Curation: scored responses become SFT rows and preference triples."""
