"""`wrpo-engine reparse`: read the kept replies of a judge artifact again, without a request."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click
import polars as pl

from wrpo_engine.artifacts.parts import PARTS
from wrpo_engine.config import ArtifactRef
from wrpo_engine.contract.evaluation import JudgeParams
from wrpo_engine.errors import UsageError
from wrpo_engine.formats.location import Locator
from wrpo_engine.judging.decision import known_decision
from wrpo_engine.judging.results import summarise
from wrpo_engine.judging.stage import cells_of
from wrpo_engine.judging.tool_context import tool_config, tool_context
from wrpo_engine.judging.verdicts import judged_of
from wrpo_engine.process.command_line import run_command

_HELP = """Read the verdicts of a judge artifact again from the replies that it keeps, and print the metrics.

No request is sent and the artifact stays as it is.

\b
ARTIFACT is the directory of the artifact, or its address with --storage. The answers and the benchmark that it was
made from must be in the same storage.

\b
Example:
  wrpo-engine reparse storage/judge/moa--mt-bench--gpt4/0123456789abcdef --mode Compat
"""


@click.command(name="reparse", help=_HELP, context_settings={"max_content_width": 120})
@click.argument("artifact")
@click.option("--storage", metavar="DIR|s3://BUCKET/PREFIX", help="Storage that an address refers to.")
@click.option(
    "--mode",
    type=click.Choice(["Compat", "Strict"]),
    help="Read as the original tools do, or refuse what they misread. Default: as the stage did.",
)
def command(artifact: str, storage: str | None, mode: str | None) -> int:
    """Print the metrics and the changes as JSON."""
    click.echo(json.dumps(reparse(artifact, storage, mode, os.environ), indent=1, ensure_ascii=False))
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    return run_command(command, arguments, prog_name="wrpo-engine reparse")


def reparse(location: str, storage: str | None, mode: str | None, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the metrics that the kept replies give, those of the artifact, and the number of verdicts that differ."""
    found = Locator(storage, environ, lambda: datetime.now(UTC)).artifact(location)
    if found is None:
        raise UsageError(f"{location} is no artifact", hint="Name a directory with a manifest.json, or add --storage.")
    artifact, store = found
    manifest = artifact.manifest
    stored = manifest.config.get("params", {})
    if stored.get("stage") != JudgeParams.kind():
        raise UsageError(f"{location} is an artifact of {manifest.stage}", hint="Name an artifact of a judge stage.")
    inputs = {role: ArtifactRef(stage=entry.stage, hash=entry.hash) for role, entry in manifest.inputs.items()}
    ctx = tool_context(tool_config("reparse", stored, artifact.ref, inputs), store, environ)
    params = ctx.config.params
    assert isinstance(params, JudgeParams)
    if mode is not None:
        params = params.model_copy(update={"mode": mode})
    cells = cells_of(ctx, params)
    cell = cells(known_decision(ctx, params, cells) or "Logprobs")
    rows = pl.concat([pl.read_parquet(path) for path in artifact.fetch_all(artifact.files(PARTS))])
    judged = judged_of(rows, cell)
    before = {
        (item_id, order, turn): (outcome, verdict)
        for item_id, order, turn, outcome, verdict in rows.select(
            "item_id", "order", "turn", "outcome", "verdict"
        ).iter_rows()
    }
    changed = [
        each for each in judged if before[each.question.name] != (each.verdict.outcome.value, each.verdict.verdict)
    ]
    return {
        "mode": params.mode,
        "metrics": dict(summarise(cell, judged).metrics),
        "metrics_of_artifact": manifest.metrics,
        "changed_verdicts": len(changed),
    }
