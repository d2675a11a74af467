"""Facts and checks of a model that an earlier run inspected or fetched."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pydantic import ValidationError

from wrpo_engine.artifacts import Artifact
from wrpo_engine.artifacts.checks import address
from wrpo_engine.config import FetchParams, InspectParams
from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_engine.stage import StageContext


def facts_of_committed(ctx: StageContext, artifact: Artifact) -> ModelFacts | None:
    """Return the facts about the model of an artifact; None if the stage reads no model.

    A fetched model is checked for its uses, because another experiment may have fetched it for others. What an older
    version recorded is read from the model again.
    """
    params = ctx.config.params
    if isinstance(params, InspectParams):
        from wrpo_engine.inspecting.stage import read_model

        return _recorded(artifact) or read_model(ctx, params)[1]
    if not isinstance(params, FetchParams):
        return None
    facts, uses = _recorded(artifact), ctx.config.runtime.model_uses
    if facts is not None and not uses:
        return facts
    from wrpo_engine.hub.models import MODEL_DIRECTORY, ResolvedModel
    from wrpo_engine.inspecting.checks import inspect_model, model_field
    from wrpo_engine.inspecting.stage import outline_below

    source = artifact.manifest.details.get("model", {})
    with tempfile.TemporaryDirectory(prefix="wrpo-inspect-") as place:
        path = outline_below(ctx, f"{address(artifact.ref)}/{MODEL_DIRECTORY}", Path(place))
        model = ResolvedModel(path, str(source.get("name")), source.get("revision"), field=model_field(uses))
        return inspect_model(model, uses, needs_facts=False)


def _recorded(artifact: Artifact) -> ModelFacts | None:
    from wrpo_engine.inspecting.stage import FACTS

    try:
        return ModelFacts.model_validate(artifact.manifest.details.get(FACTS))
    except ValidationError:
        return None
