"""Formats of rows: columns of artifacts, and triples as the engine, the published data and other tools write them."""
