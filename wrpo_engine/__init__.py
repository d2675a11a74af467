"""The machine learning of WRPO: one process per stage, files in, files out."""

__version__ = "0.1.0"
