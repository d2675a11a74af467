"""Row formats of triples, for reading and writing: the engine's, the published one, and those of other tools."""
