"""The fetch stage: a model of a hub becomes an artifact, downloaded once for all pods and experiments.

The model is checked before the first byte, as the inspect stage does it. The commit is then pinned in plan.json, so
that attempts days apart fetch the same model. Files appear one by one, verified; unfinished files are in `download/` of
the work directory, one for each process, and later attempts continue with a copy of it where it is on a volume.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import uuid
from pathlib import Path
from threading import Lock

from wrpo_engine.artifacts.parallel import in_parallel
from wrpo_engine.config import FetchParams
from wrpo_engine.contract.types import is_hub_id
from wrpo_engine.errors import AlreadyCommitted, ConfigError
from wrpo_engine.fetching.download import PART_SUFFIX, adopt_leftover, download_file
from wrpo_engine.fetching.plan import FetchPlan, choose_files
from wrpo_engine.hub.client import HubPatience, hub_errors, is_offline, offline_error
from wrpo_engine.hub.models import FETCHED, MODEL_DIRECTORY, require_pinned_code
from wrpo_engine.hub.remote import HubFile, open_model
from wrpo_engine.inspecting.checks import inspect_model, model_field
from wrpo_engine.inspecting.stage import FACTS, outline_of, recorded
from wrpo_engine.loading.files import WEIGHTS_SUFFIX
from wrpo_engine.stage import StageContext, StageResult

log = logging.getLogger("wrpo_engine")

PLAN_NAME = "plan.json"
_DOWNLOADS = "download"
_FILES_AT_ONCE = 4


def run(ctx: StageContext) -> StageResult:
    """Download a hub model, verify it, and commit it. ConfigError if the name is not a hub id."""
    params = ctx.config.params
    assert isinstance(params, FetchParams)
    model = params.model
    name = model.name
    field = model_field(ctx.config.runtime.model_uses)
    if name is None or not is_hub_id(name):
        raise ConfigError(
            field, str(name or model.input), "only models of a hub are fetched", "Write a hub id, e.g. org/model."
        )
    require_pinned_code(model, field)
    patience = HubPatience.of(ctx.environ, ctx.stop.raise_if_requested)
    try:
        with hub_errors(name, model.revision, field):
            plan = _plan(ctx, name, model.revision, patience)
            _fetch_all(ctx, plan, patience)
    except AlreadyCommitted:
        _remove_downloads(ctx)
        raise
    files = [f"{MODEL_DIRECTORY}/{file.name}" for file in plan.files]
    metrics = {"files": float(len(files)), "bytes": float(sum(file.size or 0 for file in plan.files))}
    source = {"name": plan.name, "revision": plan.revision}
    ctx.output.commit(
        files=[PLAN_NAME, *files],
        # From the plan, not from the files.
        sha256={f"{MODEL_DIRECTORY}/{file.name}": file.sha256 for file in plan.files if file.sha256 is not None},
        metrics=metrics,
        details={
            "model": source,
            FETCHED: {**source, "requested": plan.requested},
            **({} if plan.facts is None else {FACTS: recorded(plan.facts)}),
        },
    )
    _remove_downloads(ctx)
    return StageResult(rows=len(files), metrics=metrics, facts=plan.facts)


def _remove_downloads(ctx: StageContext) -> None:
    shutil.rmtree(ctx.output.directory / _DOWNLOADS, ignore_errors=True)


def _plan(ctx: StageContext, name: str, revision: str | None, patience: HubPatience) -> FetchPlan:
    """Return the plan of the first attempt, or create it."""
    if PLAN_NAME in ctx.output.published(PLAN_NAME):
        return FetchPlan.from_json(json.loads(ctx.output.fetch(PLAN_NAME).read_text(encoding="utf-8")))
    if is_offline(ctx.environ):
        raise offline_error(name, model_field(ctx.config.runtime.model_uses))
    remote = open_model(name, revision, patience)
    uses = ctx.config.runtime.model_uses
    chosen = choose_files(name, remote.files, model_field(uses))
    with tempfile.TemporaryDirectory(prefix="wrpo-fetch-") as place:
        model = outline_of(remote, Path(place), model_field(uses))
        facts = inspect_model(model, uses, needs_facts=False)
        weights = frozenset(model.directory.weight_files())
    files = tuple(file for file in chosen if file.name in weights or not file.name.endswith(WEIGHTS_SUFFIX))
    plan = FetchPlan(name, revision, remote.revision, files, facts)
    log.info("%s at %s: %d files", name, plan.revision, len(plan.files))
    content = json.dumps(plan.to_json(), indent=1) + "\n"
    # Another pod's plan may have been first, and the branch may have moved since.
    path = ctx.output.publish(PLAN_NAME, lambda path: _write(path, content))
    return FetchPlan.from_json(json.loads(path.read_text(encoding="utf-8")))


def _write(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")


def _move(source: Path, target: Path) -> None:
    """Both names are on one disk, and weights are large."""
    source.replace(target)


def _fetch_all(ctx: StageContext, plan: FetchPlan, patience: HubPatience) -> None:
    """Download and publish what no attempt has published; several files at once."""
    published = frozenset(ctx.output.published(f"{MODEL_DIRECTORY}/"))
    todo = [file for file in plan.files if f"{MODEL_DIRECTORY}/{file.name}" not in published]
    if todo and is_offline(ctx.environ):
        raise offline_error(plan.name, model_field(ctx.config.runtime.model_uses))
    total = sum(file.size or 0 for file in plan.files) or 1
    done = total - sum(file.size or 0 for file in todo)
    counting = Lock()

    def on_bytes(count: int) -> None:
        nonlocal done
        with counting:
            done += count
            ctx.progress.update(min(done, total), total)

    # No two processes write into one file, as what is verified must not change before it is published, or after.
    owner = uuid.uuid4().hex

    def fetch(file: HubFile) -> None:
        target = ctx.output.directory / _DOWNLOADS / file.name / f"{owner}{PART_SUFFIX}"
        target.parent.mkdir(parents=True, exist_ok=True)
        adopt_leftover(target, ctx.clock().timestamp())
        download_file(plan, file, target, patience, on_bytes)
        name = f"{MODEL_DIRECTORY}/{file.name}"
        ctx.output.publish(name, lambda path: _move(target, path), sha256=file.sha256)

    in_parallel(fetch, todo, threads=_FILES_AT_ONCE, name="fetch")
