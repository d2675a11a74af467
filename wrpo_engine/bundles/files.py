"""Names of the files of a bundle."""

from __future__ import annotations

ITEMS = "items.parquet"
DEVELOPMENT = "development.parquet"
REFERENCES = "references.parquet"
BASELINE = "baseline.parquet"
TEMPLATES = "templates.json"
REGULARISER = "regulariser.parquet"
DESCRIPTION = "bundle.json"
