"""Settings of explicit fusion: represent a corpus by models, align their distributions, train on them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from wrpo_engine.contract.base import Declared, Role
from wrpo_engine.contract.types import Ratio


class FusionLoss(Declared, role=Role.COMPUTED):
    """The fusion term of SFT."""

    targets: str = Field(min_length=1)
    """Role of the input with the fused distributions, e.g. align/all."""
    weight: Ratio = 0.1
    """Share of the fusion loss; the rest is the negative log-likelihood of the responses. 0: plain SFT."""


class RepresentFields(Declared, role=Role.COMPUTED):
    """Settings of the distributions that models give for the SFT corpus."""

    top_k: int = Field(default=10, ge=1, le=128)
    """Likeliest tokens that are kept for each position."""
    backend: Literal["Engine", "vLLM"] = "Engine"
    """What computes them. Engine: the forward pass of training. vLLM: its prompt log-probabilities, also of quantised
    models."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format of the forward pass."""


class AlignFields(Declared, role=Role.COMPUTED):
    """Settings of the fusion of several models' distributions in the target's vocabulary."""

    strategy: Literal["MinCE", "AvgCE"] = "MinCE"
    """MinCE: for each sequence the distributions of the model with the lowest cross-entropy, the target among them.
    AvgCE: of all models, weighted by the softmax of exp(-cross-entropy)."""
    normalise: Literal["PerToken", "PerByte"] = "PerToken"
    """Divide a sequence's cross-entropy by its tokens, as FuseLLM does, or by its bytes, which compares models of
    different tokenizers."""
    temperature: float = Field(default=1.0, gt=0, le=100)
    """Divides the kept logits before their softmax."""
    alignment: Literal["Spans", "DTW"] = "Spans"
    """Spans: positions after the same bytes of the text. DTW: dynamic time warping over tokens by edit distance, as
    FuseLLM and FuseChat do."""
    vocabulary: Literal["EM", "MinED", "MS"] = "MinED"
    """Map from a source's tokens to the target's. EM: equal tokens only. MinED: otherwise the one with the least edit
    distance. MS: pairs that are aligned in the corpus first (FuseChat's statistics)."""
    statistics: Literal["Sigmoid", "Count"] = "Sigmoid"
    """MS: weight of a pair that is aligned n times. Sigmoid: distance * sigmoid(n), as FuseChat has it, which prefers
    rare pairs. Count: the most frequent pair, then the least distance."""
    band: float = Field(default=0.1, gt=0, le=1)
    """DTW: largest distance of aligned tokens from the diagonal as a share of the sequence. 1: all pairs."""
    compat: bool = False
    """DTW: put the one-hot distribution of a position without alignment on the token before it, as the released code of
    FuseLLM does by mistake."""
