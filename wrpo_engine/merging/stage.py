"""The merge stage: one model of the weights of several, published file by file, the manifest last.

One tensor at a time is read, some rows of each parent together, so memory does not grow with the models.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from wrpo_engine.artifacts.manifest import sha256_of
from wrpo_engine.contract.merging import MergeFields, MergeParams
from wrpo_engine.hub.models import MODEL_DIRECTORY, resolve_model
from wrpo_engine.judging.decision import DECISION
from wrpo_engine.judging.journal import PREFIX
from wrpo_engine.merging.building import Merge, Poll
from wrpo_engine.merging.card import merge_card
from wrpo_engine.merging.parents import Parent, open_parent, require_alike
from wrpo_engine.merging.search import Found, candidate_weights
from wrpo_engine.stage import StageContext, StageResult

log = logging.getLogger("wrpo_engine")

MERGE_FILE = "merge.json"
CARD_FILE = "README.md"
_WORK = "work/"
_MODEL = f"{MODEL_DIRECTORY}/"
_FIELD = "evaluation.systems"


def run(ctx: StageContext) -> StageResult:
    """Check that the parents fit each other, merge what is not published yet, and commit."""
    params = ctx.config.params
    assert isinstance(params, MergeParams)
    parents = open_parents(ctx, params)
    found: Found | None = None
    weights_of: Callable[[str], Sequence[float]] = partial(_same_for_all, params.weights)
    if params.search is not None:
        from wrpo_engine.merging.fitness import searched

        found = searched(ctx, params, parents)
        weights_of = candidate_weights(found.groups, found.best.coefficients, len(params.models))
    # Linear reads of a base only what is no weight, because it merges no deltas.
    skipped = int(params.method == "Linear" and params.base is not None)
    merge = Merge(fields=params, parents=parents, weights_of=weights_of, skipped=skipped)
    _publish(ctx, merge, before=found.evaluated if found is not None else 0)
    identities = identities_of(params, parents)
    files = _describe(ctx, params, merge, identities, found)
    metrics: dict[str, float] = {"tensors": float(len(merge.tensors)), "parents": float(len(parents))}
    if found is not None:
        metrics |= {"candidates": float(found.evaluated), "fitness": found.best.fitness}
    details = {"model": {"name": f"{params.method} merge", "revision": None}, "parents": identities}
    # All replies of a judge are in the parts of the candidates.
    ctx.output.discard(PREFIX)
    ctx.output.commit(files=files, metrics=metrics, details=details)
    ctx.output.discard(_WORK)
    return StageResult(rows=len(merge.tensors), metrics=metrics)


def _same_for_all(weights: Sequence[float], _name: str) -> Sequence[float]:
    return weights


def open_parents(ctx: StageContext, params: MergeParams) -> list[Parent]:
    """Return the parents, the base first; an error names the first difference between them."""
    parents = [
        open_parent(resolve_model(reference, ctx, field=ctx.model_field(place, f"{_FIELD}.merge.{place}")))
        for place, reference in params.parents.items()
    ]
    require_alike(parents)
    return parents


def identities_of(params: MergeParams, parents: Sequence[Parent]) -> list[dict[str, Any]]:
    """Return name, digest, part and weight of each parent."""
    base: list[dict[str, Any]] = [{"part": "base"}] if params.base is not None else []
    rest: list[dict[str, Any]] = [{"part": "model", "weight": weight} for weight in params.weights]
    return [{**parent.identity(), **part} for parent, part in zip(parents, [*base, *rest], strict=True)]


def _publish(ctx: StageContext, merge: Merge, *, before: int) -> None:
    """Publish the files of the model that are not there yet. `before` is the number of merges of a search."""
    published = frozenset(ctx.output.published(_MODEL))
    notes = frozenset(ctx.output.published(_WORK))
    total = sum(tensor.num_bytes for tensor in merge.tensors.values())
    done = 0

    def poll(count: int) -> None:
        nonlocal done
        ctx.stop.raise_if_requested()
        done += count
        ctx.progress.update(before + done / max(total, 1), before + 1)

    for name, write in merge.small_files().items():
        ctx.output.publish(_MODEL + name, write)
    for file in merge.shards.tensors:
        note = f"{_WORK}{file}.json"
        if _MODEL + file in published and note in notes:
            merge.found.update(json.loads(ctx.output.fetch_all([note])[0].read_text(encoding="utf-8")))
            poll(sum(merge.tensors[name].num_bytes for name in merge.shards.tensors[file]))
            continue
        log.info("merging %d tensors into %s", len(merge.shards.tensors[file]), file)
        ctx.output.publish(_MODEL + file, partial(_write_shard, merge, file, poll), replace=True)
        own = {name: merge.found[name] for name in merge.shards.tensors[file] if name in merge.found}
        ctx.output.publish(note, partial(_write, json.dumps(own)), replace=True)


def _write_shard(merge: Merge, file: str, poll: Poll, path: Path) -> None:
    merge.write_shard(path, file, poll)


def _describe(
    ctx: StageContext,
    params: MergeParams,
    merge: Merge,
    identities: list[dict[str, Any]],
    found: Found | None,
) -> list[str]:
    """Publish merge.json and the card; return the names of all files of the artifact."""
    parameters = params.model_dump(mode="json", include=set(MergeFields.model_fields))
    content: dict[str, Any] = {"method": params.method, "parameters": parameters, "parents": identities}
    if merge.found:
        content["weights"] = {name: list(merge.found[name]) for name in sorted(merge.found)}
    if found is not None:
        content["search"] = found.to_json()
    weights = [_MODEL + file for file in merge.shards.tensors]
    paths = ctx.output.fetch_all(weights)
    digests = {name: sha256_of(path) for name, path in zip(weights, paths, strict=True)}
    card = merge_card(
        experiment=ctx.config.experiment,
        parameters=parameters,
        parents=identities,
        digests=digests,
        searched=found is not None,
    )
    ctx.output.publish(MERGE_FILE, partial(_write, json.dumps(content, indent=2) + "\n"), replace=True)
    names = [_MODEL + CARD_FILE, CARD_FILE]
    for name in names:
        ctx.output.publish(name, partial(_write, card), replace=True)
    search = [*ctx.output.published("points/"), *ctx.output.published(DECISION)]
    return [MERGE_FILE, *search, *names, *weights, *(_MODEL + name for name in merge.small_files())]


def _write(content: str, path: Path) -> None:
    path.write_text(content, encoding="utf-8")
