"""Context length of a model in tokens, read from its configuration. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
    "n_ctx",
    "max_target_positions",
)
"""The names that architectures have for it, the commonest first."""
_SCALED = frozenset({"linear", "dynamic", "yarn"})
"""Kinds of rotary scaling whose factor is not part of max_position_embeddings by convention."""
_OFFSET_BY_PADDING = frozenset(
    {
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "camembert",
        "longformer",
        "data2vec-text",
        "ibert",
        "xmod",
        "mpnet",
    }
)
"""Encoders whose first position is pad_token_id + 1: the rows before it hold no tokens."""


def context_of(config: Mapping[str, Any]) -> int | None:
    """Return the longest sequence that a model of this configuration was made for, in tokens; None if there is no end.

    Sliding windows do not limit it, scaled rotary positions extend it, and ALiBi has no end unless the architecture
    has a table of it.
    """
    text = _text_config(config)
    if _has_open_alibi(text):
        return None
    length = next((value for key in _KEYS if (value := _positive_integer(text.get(key))) is not None), None)
    if length is None:
        return None
    if text.get("model_type") in _OFFSET_BY_PADDING:
        pad = text.get("pad_token_id", 1)
        return max(1, length - 1 - (pad if isinstance(pad, int) else 1))
    return _scaled(length, text)


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    nested = config.get("text_config")
    return nested if isinstance(nested, Mapping) and nested else config


def _has_open_alibi(text: Mapping[str, Any]) -> bool:
    return text.get("model_type") == "bloom" or (text.get("model_type") == "falcon" and text.get("alibi") is True)


def _scaled(length: int, text: Mapping[str, Any]) -> int:
    # Given by type of layer (Gemma 3), the factor is part of the length already.
    scaling = text.get("rope_parameters") or text.get("rope_scaling")
    if not isinstance(scaling, Mapping):
        return length
    kind = scaling.get("rope_type") or scaling.get("type")
    factor = scaling.get("factor")
    if kind not in _SCALED or isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 < factor < 1e6:
        return length
    original = _positive_integer(scaling.get("original_max_position_embeddings")) or length
    return max(length, int(original * factor))


def _positive_integer(value: object) -> int | None:
    # Some write a number beyond all lengths for "no end".
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**12 else None
