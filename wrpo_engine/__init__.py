"""The part of WRPO that does the machine learning: one process per stage, files in, files out."""

__version__ = "0.1.0"
