"""Row formats of triples, for reading and writing: ours, the published one, and what other tools write."""
