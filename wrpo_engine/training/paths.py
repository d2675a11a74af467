"""Paths in a training artifact, relative to its directory."""

from __future__ import annotations

CHECKPOINTS_DIRECTORY = "checkpoints"
REFERENCE_DIRECTORY = "reference"
TOKENS_DIRECTORY = "tokens"
WORK_DIRECTORIES = (CHECKPOINTS_DIRECTORY, REFERENCE_DIRECTORY, TOKENS_DIRECTORY)
"""Directories that only a resumed run needs; removed after the commit."""
MODEL_FIELD = "target"
"""The field of the experiment's spec that names the trained model, for error messages."""
