"""The bench stage: read a benchmark's files, check them, and write them in one form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import polars as pl

from wrpo_engine.artifacts import records
from wrpo_engine.bundles.content import Content, check, limited, marked, with_development
from wrpo_engine.bundles.files import BASELINE, DESCRIPTION, DEVELOPMENT, ITEMS, REFERENCES, REGULARISER, TEMPLATES
from wrpo_engine.bundles.items import BenchItem
from wrpo_engine.bundles.known import LICENCES
from wrpo_engine.bundles.loaders import DEFAULT_BUNDLES, HUB_FILES, PACKAGES, load
from wrpo_engine.bundles.places import FIELD, Source, open_bundle
from wrpo_engine.contract.benchmarks import Protocol
from wrpo_engine.contract.evaluation import BenchParams
from wrpo_engine.errors import ConfigError
from wrpo_engine.stage import StageContext, StageResult


def run(ctx: StageContext) -> StageResult:
    """Read, check and write a bundle. DataError or ConfigError for one that cannot be used."""
    params = ctx.config.params
    assert isinstance(params, BenchParams)
    ctx.progress.update(0, 2, message="reading the bundle")
    protocol = _protocol(params)
    packages = PACKAGES.get(protocol, ()) if protocol else ()
    bundle = open_bundle(ctx, _reference(params), wanted=HUB_FILES.get(params.benchmark, ()), packages=packages)
    content = load(bundle, params.benchmark, protocol, params.reference_set)
    sources = bundle.sources()
    digest = digest_of_sources(sources)
    if params.bundle_digest not in {None, digest}:
        raise ConfigError(
            f"{FIELD}Digest",
            params.bundle_digest,
            f"the files of the bundle have the digest {digest}",
            "Use the files that were meant, or set the digest to this one.",
            code="BundleDigest",
        )
    content = limited(content, params.limit)
    check(content, protocol)
    content = with_development(content, params.development)
    ctx.stop.raise_if_requested()
    metrics = _metrics(content, protocol)
    frames = _frames(content)
    for name, frame in frames.items():
        # The files may have changed since an attempt that was killed: its parts must not be mixed with these.
        ctx.output.publish(name, frame.write_parquet, replace=True)
    description = _description(params, content, sources, digest, metrics)
    for name, value in ((TEMPLATES, dict(content.templates)), (DESCRIPTION, description)):
        _publish_json(ctx, name, value)
    rows = {name: frame.height for name, frame in frames.items()}
    details = {"bundle_digest": digest, "version": content.version, "reference_set": content.reference_set}
    ctx.output.commit(files=[*frames, TEMPLATES, DESCRIPTION], rows=rows, metrics=metrics, details=details)
    ctx.progress.update(2, 2, metrics=metrics)
    return StageResult(rows=rows[ITEMS], metrics=metrics)


def digest_of_sources(sources: Sequence[Source]) -> str:
    """Return the sha256 of the files' own digests, sorted and one a line: where the files are has no effect."""
    lines = "".join(f"{digest}\n" for digest in sorted(source.sha256 for source in sources))
    return hashlib.sha256(lines.encode()).hexdigest()


def _protocol(params: BenchParams) -> Protocol | None:
    match params.benchmark:
        case "AlpacaEval2" | "ArenaHard" | "ArenaHardV2" | "MTBench":
            return params.benchmark
        case _:
            return params.protocol


def _reference(params: BenchParams) -> str:
    reference = params.bundle or DEFAULT_BUNDLES.get(params.benchmark)
    if reference is None:
        raise ConfigError(
            FIELD,
            "unset",
            f"benchmark {params.benchmark} has no usual place",
            "Name the directory of its files, e.g. storage://benchmarks/arena-hard.",
        )
    return reference


def _frames(content: Content) -> dict[str, pl.DataFrame]:
    """Return the tables by file name, of the items that are used alone."""
    used = [item.item_id for item in (*content.items, *content.development)]
    frames = {ITEMS: _frame_of(content.items)}
    if content.development:
        frames[DEVELOPMENT] = _frame_of(content.development)
    if content.references:
        rows = [
            {"item_id": item_id, "reference_set": content.reference_set, "turns": list(content.references[item_id])}
            for item_id in used
            if item_id in content.references
        ]
        frames[REFERENCES] = pl.DataFrame(rows, schema=records.BENCH_REFERENCES)
    if content.baseline is not None:
        answers = [(item_id, content.baseline[item_id]) for item_id in used]
        rows = [{"item_id": name, "generator": answer.model, "turns": list(answer.turns)} for name, answer in answers]
        frames[BASELINE] = pl.DataFrame(rows, schema=records.BENCH_BASELINE)
    if content.regulariser is not None:
        frames[REGULARISER] = content.regulariser
    return frames


def _frame_of(items: Sequence[BenchItem]) -> pl.DataFrame:
    rows = [asdict(item) | {"turns": list(item.turns), "messages": list(item.messages)} for item in items]
    return pl.DataFrame(rows, schema=records.BENCH_ITEMS)


def _metrics(content: Content, protocol: Protocol | None) -> dict[str, float]:
    prompts = ["\n".join(item.turns) for item in content.items]
    used = [item.item_id for item in content.items]
    baseline = [] if content.baseline is None else [content.baseline[item_id] for item_id in used]
    development = {"development_items": float(len(content.development))} if content.development else {}
    return development | {
        "items": float(len(content.items)),
        "turns": float(sum(len(item.turns) for item in content.items)),
        "references": float(sum(item_id in content.references for item_id in used)),
        "baseline_answers": float(len(baseline)),
        "prompts_with_delimiters": float(marked(prompts, protocol)),
        "baseline_answers_with_delimiters": float(marked(["\n".join(answer.turns) for answer in baseline], protocol)),
    }


def _description(
    params: BenchParams, content: Content, sources: Sequence[Source], digest: str, counts: dict[str, float]
) -> dict[str, object]:
    """Return the content of bundle.json."""
    return {
        "name": params.benchmark,
        "version": content.version,
        "digest": digest,
        "sources": [asdict(source) for source in sources],
        "judge_prompts": {
            name: hashlib.sha256(text.encode()).hexdigest() for name, text in sorted(content.templates.items())
        },
        "reference_set": content.reference_set,
        "baseline": sorted(
            {content.baseline[item.item_id].model for item in content.items} if content.baseline else ()
        ),
        "counts": {name: int(count) for name, count in counts.items()},
        "categories": dict(sorted(_categories(content).items())),
        "licence": LICENCES[params.benchmark],
    }


def _categories(content: Content) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in content.items:
        found[item.category] = found.get(item.category, 0) + 1
    return found


def _publish_json(ctx: StageContext, name: str, value: object) -> None:
    def write(path: Path) -> None:
        path.write_text(json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    ctx.output.publish(name, write, replace=True)
