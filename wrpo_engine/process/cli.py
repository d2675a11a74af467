"""Reader of the configuration file that a stage's command line names."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import ValidationError

from wrpo_engine.contract.stage_config import StageConfig
from wrpo_engine.errors import ConfigError, UsageError

_USER_INFO = re.compile(r"://[^/\s]*@")


def read_config(stage: str, path: Path) -> StageConfig:
    """Read the stage's file; the first broken field is named."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"--config {path} cannot be read: {error.strerror}",
            hint="Name the stage's JSON file; `wrpo plan -f EXPERIMENT` shows what the operator writes.",
        ) from error
    try:
        config = StageConfig.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(
            field,
            _shown(first["input"]),
            first["msg"],
            f"Correct {path}; if the operator wrote it, operator and engine are of different versions.",
        ) from error
    if config.params.kind() != stage:
        raise UsageError(
            f"{path} configures the stage {config.params.kind()}, but the command names {stage}",
            hint=f"Run `wrpo-engine {config.params.kind()} --config {path}`.",
        )
    return config


def _shown(value: object) -> str:
    # A URL that is refused because it holds a password must not show it.
    text = _USER_INFO.sub("://***@", str(value))
    return text if len(text) <= 80 else text[:79] + "…"
