"""Loading of policy and frozen reference at the start of an attempt."""

from __future__ import annotations

from typing import Any

from wrpo_engine.config import OptimizerParams
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.training.batch.layout import Layout
from wrpo_engine.training.models.attention import IMPLEMENTATION
from wrpo_engine.training.models.lora import add_adapters
from wrpo_engine.training.models.model import LogpModel, load_causal_lm


def load_policy(
    base: ResolvedModel,
    params: OptimizerParams,
    layout: Layout = Layout.PADDED,
    *,
    implementation: str = IMPLEMENTATION,
) -> LogpModel:
    """Load the base model, with new adapters if only they are trained; the backend restores a checkpoint later."""
    causal_lm = _loaded(base, params, gradient_checkpointing=params.gradient_checkpointing)
    if params.lora is not None:
        add_adapters(causal_lm, params.lora, seed=params.seed)
    return LogpModel(causal_lm, layout, implementation=implementation)


def load_frozen(
    base: ResolvedModel,
    params: OptimizerParams,
    layout: Layout = Layout.PADDED,
    *,
    implementation: str = IMPLEMENTATION,
) -> LogpModel:
    """Load the base model a second time, as the reference next to the policy."""
    causal_lm = _loaded(base, params, gradient_checkpointing=False)
    return LogpModel(causal_lm, layout, implementation=implementation)


def _loaded(base: ResolvedModel, params: OptimizerParams, *, gradient_checkpointing: bool) -> Any:
    return load_causal_lm(
        base.path,
        precision=params.precision,
        gradient_checkpointing=gradient_checkpointing,
        trust_remote_code=base.trust_remote_code,
    )
