"""The model that is trained, as an attempt starts with it."""

from __future__ import annotations

import torch

from wrpo_engine.config import OptimizerParams
from wrpo_engine.models import ResolvedModel
from wrpo_engine.training.backend import TensorKind
from wrpo_engine.training.checkpoint import Checkpoint
from wrpo_engine.training.layout import Layout
from wrpo_engine.training.model import LogpModel, load_causal_lm


def load_policy(
    base: ResolvedModel, params: OptimizerParams, checkpoint: Checkpoint | None, layout: Layout = Layout.PADDED
) -> LogpModel:
    """Load the base model; with a checkpoint, its weights take the place of the base's."""
    causal_lm = load_causal_lm(
        base.path,
        precision=params.precision,
        gradient_checkpointing=params.gradient_checkpointing,
        trust_remote_code=base.trust_remote_code,
    )
    if checkpoint is not None:
        with torch.no_grad():
            for name, parameter in causal_lm.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(checkpoint.read(name, TensorKind.WEIGHT))
    return LogpModel(causal_lm, layout)
