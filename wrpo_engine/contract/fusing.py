"""Parameters of the stages of explicit fusion."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from wrpo_engine.contract.base import Role, StageParams
from wrpo_engine.contract.fusion import AlignFields, RepresentFields
from wrpo_engine.contract.references import ModelRef
from wrpo_engine.contract.types import Tokens


class RepresentParams(RepresentFields, StageParams, role=Role.COMPUTED):
    """Read the likeliest tokens for each position of the SFT corpus under one model."""

    stage: Literal["represent"] = "represent"
    model: ModelRef
    source: str
    """Name of the source in the experiment, or `target`."""
    max_length: Tokens | None = None
    """Maximum tokens of prompt and response: longer responses are truncated as in SFT (the target). Unset: rows that
    exceed the model's context are left out and counted (sources)."""
    max_prompt_length: Tokens | None = None
    """Maximum tokens of the prompt: rows with longer ones are left out as in SFT. Unset: max_length."""
    rows_per_part: int = Field(default=256, ge=1, le=65536)
    """Rows committed together; a killed pod loses at most one such part. The same for all models of a fusion."""


class AlignParams(AlignFields, StageParams, role=Role.COMPUTED):
    """Decide the distributions that SFT trains on, in the target's vocabulary: one for each row of the corpus."""

    stage: Literal["align"] = "align"
    target_input: str
    """Role of the input with the target's own distributions."""
    source_inputs: tuple[str, ...] = Field(min_length=1)
    """Roles of the inputs with the sources' distributions, in the order that decides ties after the target."""

    @model_validator(mode="after")
    def _is_fusion(self) -> AlignParams:
        roles = (self.target_input, *self.source_inputs)
        if len(set(roles)) != len(roles):
            raise ValueError(f"target_input and source_inputs must be different roles; got {', '.join(roles)}")
        if self.compat and self.alignment != "DTW":
            raise ValueError("compat needs alignment DTW, because the released code aligns tokens, not spans")
        return self
