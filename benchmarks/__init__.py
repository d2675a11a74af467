"""Measurements of wrpo against its peers: one command each, both sides in one run."""
