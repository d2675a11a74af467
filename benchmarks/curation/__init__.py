"""Curation at the paper's size: time and peak memory of the curate-triples stage in a separate process."""
