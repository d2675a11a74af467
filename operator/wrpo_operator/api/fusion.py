"""Section of the spec about explicit fusion: training on the distributions of other models."""

from __future__ import annotations

from typing import Annotated

from wrpo_engine.contract.base import Role
from wrpo_engine.contract.fusion import AlignFields, RepresentFields
from wrpo_engine.contract.types import Ratio
from wrpo_operator.api.base import SpecModel
from wrpo_operator.api.members import Members
from wrpo_operator.api.merging import FusedMerge


class Fusion(AlignFields, RepresentFields, SpecModel):
    """Distributions of the sources over the SFT rows, which SFT trains on in addition to the responses (FuseLLM)."""

    sources: Annotated[Members, Role.COMPUTED]
    """Names of the sources whose distributions are fused, in the order that decides ties after the target. `*`: all
    sources."""
    weight: Annotated[Ratio, Role.COMPUTED] = 0.1
    """Share of the fusion loss; the rest is the negative log-likelihood of the responses. 0: plain SFT."""


class SystemFusion(Fusion):
    """A fusion for a system of the evaluation."""

    merge: Annotated[FusedMerge | None, Role.COMPUTED] = None
    """Train the target with each source alone, then merge the models (FuseChat). Unset: one training with all sources
    (FuseLLM)."""
