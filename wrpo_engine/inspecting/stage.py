"""The inspect stage: the size and shape of a model, for the choice of its accelerators."""

from __future__ import annotations

from pathlib import Path

from wrpo_engine.config import InspectParams
from wrpo_engine.contract.model_facts import ModelFacts, facts_of  # type: ignore[attr-defined]
from wrpo_engine.hub.models import resolve_model, tensor_facts
from wrpo_engine.loading.files import CONFIG_FILE
from wrpo_engine.stage import StageContext, StageResult

FACTS_NAME = "facts.json"


def run(ctx: StageContext) -> StageResult:
    """Read a model's config and headers and commit its facts; ConfigError for a model that cannot load."""
    params = ctx.config.params
    assert isinstance(params, InspectParams)
    uses = ctx.config.runtime.model_uses
    model = resolve_model(params.model, ctx, field=f"{uses[0].field}.model" if uses else "model")
    tensor_facts(model)
    facts: ModelFacts = facts_of(model.directory.read_object(CONFIG_FILE), weight_bytes=None)
    content = facts.model_dump_json(indent=1, exclude_none=True) + "\n"
    ctx.output.publish(FACTS_NAME, lambda path: _write(path, content))
    ctx.output.commit(files=[FACTS_NAME], details={"model": model.details(), "facts": facts.model_dump(mode="json")})
    return StageResult(rows=1, facts=facts)


def _write(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")
