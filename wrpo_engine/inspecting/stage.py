"""The inspect stage: the size and shape of a model, for the choice of its accelerators, and a check that it can load.

It reads config, tokenizer and the headers of the weights, never the weights.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from wrpo_engine.config import InspectParams, ModelRef
from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_engine.contract.types import is_hub_id
from wrpo_engine.errors import ConfigError
from wrpo_engine.hub.client import HubPatience, hub_errors, is_offline
from wrpo_engine.hub.models import ResolvedModel, download, require_pinned_code
from wrpo_engine.hub.remote import HubModel, open_model
from wrpo_engine.inspecting.checks import inspect_model, model_field
from wrpo_engine.inspecting.outline import write_outline
from wrpo_engine.stage import StageContext, StageResult

FACTS_NAME = "facts.json"
FACTS = "facts"
"""Key of the facts in the details of a manifest."""


def run(ctx: StageContext) -> StageResult:
    """Check a model and commit the facts about it; ConfigError for one that cannot be loaded or does not exist."""
    params = ctx.config.params
    assert isinstance(params, InspectParams)
    model, facts = read_model(ctx, params)
    content = facts.model_dump_json(indent=1, exclude_none=True) + "\n"
    ctx.output.publish(FACTS_NAME, lambda path: _write(path, content))
    ctx.output.commit(files=[FACTS_NAME], details={"model": model.details(), FACTS: recorded(facts)})
    return StageResult(rows=1, facts=facts)


def read_model(ctx: StageContext, params: InspectParams) -> tuple[ResolvedModel, ModelFacts]:
    """Check a model; return it and the facts about it. Its directory is removed again unless it is local."""
    if params.model.name is not None and is_hub_id(params.model.name):
        for use in params.uses:
            trusting = params.model.model_copy(update={"trust_remote_code": use.trust_remote_code})
            require_pinned_code(trusting, use.field)
    with tempfile.TemporaryDirectory(prefix="wrpo-inspect-") as place:
        model = _resolve(ctx, params.model, model_field(params.uses), Path(place))
        facts = inspect_model(model, params.uses, needs_facts=True)
    assert facts is not None
    return model, facts


def recorded(facts: ModelFacts) -> dict[str, Any]:
    """Return facts as they are recorded in a manifest."""
    return facts.model_dump(mode="json", exclude_none=True)


def _write(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")


def _resolve(ctx: StageContext, model: ModelRef, field: str, place: Path) -> ResolvedModel:
    """Return the model, as an outline in `place` unless it is local."""
    name = model.name
    if name is None:
        raise ConfigError(field, str(model.input), "only a model that exists is inspected", "Set model.name.")
    if not is_hub_id(name):
        below = ctx.below_root(name)
        if below is None:
            return ResolvedModel(Path(name), name, None, field=field)
        path = outline_below(ctx, below, place)
        return ResolvedModel(path, name, None, field=field, location=f"{ctx.store.location}/{below}")
    with hub_errors(name, model.revision, field):
        if is_offline(ctx.environ):
            path = download(name, model.revision, ctx, field)
            return ResolvedModel(path, name, path.name, field=field)
        remote = open_model(name, model.revision, HubPatience.of(ctx.environ, ctx.stop.raise_if_requested))
        return outline_of(remote, place, field)


def outline_of(remote: HubModel, place: Path, field: str) -> ResolvedModel:
    """Return a hub's model as an outline in `place`. The hub's own errors are raised."""
    write_outline(remote, place)
    location = f"{remote.name} at {remote.revision}"
    return ResolvedModel(place, remote.name, remote.revision, field=field, location=location)


def outline_below(ctx: StageContext, below: str, place: Path) -> Path:
    """Return a directory below the storage root: itself on a volume, its outline in `place` on S3."""
    remote = ctx.store.remote(below)
    if remote is None:
        return ctx.store.local_copy(below)
    if not remote.sizes():
        # On a volume, the same mistake is a directory that does not exist.
        return place / "missing"
    write_outline(remote, place)
    return place
