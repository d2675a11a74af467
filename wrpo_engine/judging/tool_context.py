"""The context of a stage for tools that read what a stage reads, and write nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from wrpo_engine.artifacts import ArtifactStore
from wrpo_engine.config import ArtifactRef
from wrpo_engine.contract.stage_config import StageConfig
from wrpo_engine.process.progress import Progress
from wrpo_engine.stage import StageContext, StopRequest


def tool_config(
    tool: str, params: Mapping[str, Any], output: ArtifactRef, inputs: Mapping[str, ArtifactRef]
) -> StageConfig:
    """Return the configuration of a tool. `params` are those of a stage, as its file has them."""
    return StageConfig.model_validate(
        {
            "experiment": tool,
            "output": output.model_dump(),
            "inputs": {role: ref.model_dump() for role, ref in inputs.items()},
            "storage": {"kind": "volume"},
            "params": dict(params),
        }
    )


def tool_context(config: StageConfig, store: ArtifactStore, environ: Mapping[str, str]) -> StageContext:
    """Return a context that reads from the store."""
    return StageContext(
        config=config,
        store=store,
        output=store.writer(config.output, config={}, inputs={}),
        shard=0,
        progress=Progress([], time.monotonic),
        stop=StopRequest(),
        environ=environ,
        clock=lambda: datetime.now(UTC),
    )
