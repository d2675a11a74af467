"""Equality of prompts: compatibility forms, case, punctuation and blanks are ignored."""

from __future__ import annotations

import polars as pl

_NOT_WORDS = r"[^\p{L}\p{N}]+"


def normalised(text: pl.Expr) -> pl.Expr:
    """Return the words of a text, one blank between them; a text without any word stays as it is."""
    words = text.str.normalize("NFKC").str.to_lowercase().str.replace_all(_NOT_WORDS, " ").str.strip_chars()
    return pl.when(words == "").then(text).otherwise(words)
