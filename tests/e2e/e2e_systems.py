"""A whole evaluation for the real engine: every form of system, a benchmark of our own and a served judge."""

from __future__ import annotations

import json
from pathlib import Path

from e2e_real_support import SOURCES
from e2e_support import JsonObject
from engine.engine_support import save_small_model, save_tiny_model
from engine.judging.judging_texts import ALPACA
from engine.selecting.pairrm_models import save_pairrm

BENCHMARKS = ("held-out", "own")
ITEMS = 3
JUDGE = "pair"
SYSTEMS = ("target", "sft", "trained", *SOURCES, "other", "pack", "blender", "best", "chance", "moa")
"""Rows of the evaluation, in the order of the tables."""
_SELECTIONS = ("pack", "blender", "best", "chance")
_MODELS = ("target", "sft", "trained", *SOURCES, "other")


def fill_with_benchmark(directory: Path) -> None:
    """Add a benchmark of our own, with its judge prompt, a ranker and a judge to what storage:// finds."""
    bundle = directory / "benchmark"
    bundle.mkdir()
    items = [json.dumps({"id": f"q{number}", "prompt": f"Name {number} colours."}) for number in range(ITEMS)]
    (bundle / "items.jsonl").write_text("\n".join(items) + "\n", encoding="utf-8")
    (bundle / "judge_prompts.json").write_text(json.dumps({"alpaca_eval_clf": ALPACA}), encoding="utf-8")
    save_pairrm(directory / "models" / "ranker")
    save_tiny_model(directory / "models" / "other", seed=7, context=2048)
    save_small_model(directory / "models" / "judge")


def all_systems() -> JsonObject:
    """Return spec.evaluation with every form of system."""
    return {
        "maxTokens": 8,
        "benchmarks": [
            {
                "name": "own",
                "kind": "Custom",
                "protocol": "AlpacaEval2",
                "bundle": "storage://benchmark",
                "baseline": "target",
            }
        ],
        "judges": [{"name": JUDGE, "serveReward": "main"}],
        "systems": [
            *({"name": source, "source": source} for source in SOURCES),
            {"name": "other", "model": {"model": "storage://models/other"}},
            {"name": "pack", "select": {"by": "Perplexity", "members": ["*", "target"]}},
            {
                "name": "blender",
                "select": {"by": "PairRM", "members": ["*"], "ranker": {"model": "storage://models/ranker"}},
            },
            {"name": "best", "select": {"by": "Reward", "members": ["*", "other"]}},
            {"name": "chance", "select": {"by": "Random", "members": ["*"]}},
            # Its context has room for the references.
            {"name": "moa", "mixture": {"proposers": ["*"], "aggregator": "other", "maxTokens": 8}},
        ],
    }


def with_served_judge() -> JsonObject:
    """Return spec.evaluation of the experiment's own models, with a model that vLLM serves as the judge."""
    judge = {"name": "llm", "serve": {"model": "storage://models/judge"}, "maxInvalidShare": 1.0}
    return {**all_systems(), "judges": [judge], "systems": []}


def stages_of_systems() -> set[str]:
    """Return the stages that `all_systems` has, besides prompts, training and report."""
    stages = {"bench/own", "evaluate"}
    for benchmark in BENCHMARKS:
        stages |= {f"answer/{model}--{benchmark}" for model in _MODELS}
        stages |= {f"mixture/moa--{benchmark}", f"rank/blender--{benchmark}"}
        stages |= {f"select/{system}--{benchmark}" for system in _SELECTIONS}
        stages |= {f"perplexity/{model}--{benchmark}" for model in (*SOURCES, "target")}
    stages |= {f"grade/{system}--held-out--main" for system in SYSTEMS}
    stages |= {f"grade/{member}--own--main" for member in (*SOURCES, "other")}
    stages |= {f"judge/{system}--own--{JUDGE}" for system in SYSTEMS}
    return stages
