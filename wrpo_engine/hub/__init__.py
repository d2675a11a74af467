"""Hub models and data sets: download, pinned revisions, digests."""
