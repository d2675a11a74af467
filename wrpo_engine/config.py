"""Names of the contract between operator and engine, which `wrpo_engine.contract` defines. Imports no torch."""

from __future__ import annotations

from wrpo_engine.contract.base import CONTRACT_VERSION, StageParams
from wrpo_engine.contract.objectives import Objective
from wrpo_engine.contract.outcome import REWARD_DIVERGENCE, ErrorInfo, TerminationMessage
from wrpo_engine.contract.references import ArtifactRef, ModelRef, RewardModel
from wrpo_engine.contract.runtime import SPEED_ENGINE_ARGS, Runtime
from wrpo_engine.contract.stage_params import (
    CurateSftParams,
    CurateTriplesParams,
    FetchParams,
    InspectParams,
    PrepareParams,
    ReportParams,
    SampleParams,
    ScoreParams,
)
from wrpo_engine.contract.storage import S3Storage, Storage, VolumeStorage
from wrpo_engine.contract.training import AlphaParams, HoldoutParams, LoraParams
from wrpo_engine.contract.training_params import FuseParams, ObjectiveFields, OptimizerParams, SftParams, TrainParams
from wrpo_engine.exit_codes import ExitCode

__all__ = [
    "CONTRACT_VERSION",
    "REWARD_DIVERGENCE",
    "SPEED_ENGINE_ARGS",
    "AlphaParams",
    "ArtifactRef",
    "CurateSftParams",
    "CurateTriplesParams",
    "ErrorInfo",
    "ExitCode",
    "FetchParams",
    "FuseParams",
    "HoldoutParams",
    "InspectParams",
    "LoraParams",
    "ModelRef",
    "Objective",
    "ObjectiveFields",
    "OptimizerParams",
    "PrepareParams",
    "ReportParams",
    "RewardModel",
    "Runtime",
    "S3Storage",
    "SampleParams",
    "ScoreParams",
    "SftParams",
    "StageParams",
    "Storage",
    "TerminationMessage",
    "TrainParams",
    "VolumeStorage",
]
