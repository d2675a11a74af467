"""Explicit fusion beside WRPO through the real operator: sources of another tokenizer in, one table out."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from e2e_real_support import HELD_OUT, SOURCES, Artifacts, claim_path, fill_claim, real_cluster, real_experiment
from e2e_support import EXTERNAL, JsonObject, Kube
from engine.engine_support import save_llama
from engine.tokenizer_kinds import KINDS
from support.patience import LONG_S

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(EXTERNAL, reason="a foreign cluster has no image of the engine, nor its claim's directory here"),
]

CLAIM = "fusion"
SYSTEMS: tuple[JsonObject, ...] = (
    {"name": "fusellm", "fuse": {"sources": ["*"], "strategy": "MinCE", "weight": 0.5}},
    {
        "name": "fusechat",
        "fuse": {
            "sources": ["*"],
            "alignment": "DTW",
            "vocabulary": "MS",
            "weight": 0.5,
            "merge": {"method": "SCE", "selectTopK": 0.1},
        },
    },
    {"name": "ties", "merge": {"method": "TIES", "models": ["sft", "fusellm"], "density": 0.5}},
    {"name": "eva", "joint": {"method": "EVA", "members": ["target", "*"]}},
)
ROWS = ("target", "sft", "trained", *(str(system["name"]) for system in SYSTEMS))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    with real_cluster(tmp_path_factory.mktemp("fusion"), (CLAIM,)) as cluster:
        directory = claim_path(cluster, CLAIM)
        fill_claim(directory)
        tokenizer = KINDS["byte-level"]()  # with merges; the target's has bytes only
        for seed, source in enumerate(SOURCES):
            save_llama(directory / "models" / source, tokenizer, seed=10 + seed)
        yield cluster


def test_fused_merged_and_joint_systems_run_beside_wrpo_and_end_in_one_table(real: Kube) -> None:
    spec = real_experiment(CLAIM, CLAIM)["spec"]
    sft = {**spec["sft"], "learningRate": 3e-3, "epochs": 3}
    training = {**spec["training"], "nodes": 1}
    evaluation = {"maxTokens": 8, "systems": list(SYSTEMS)}
    real.apply(real_experiment(CLAIM, CLAIM, sft=sft, training=training, evaluation=evaluation))
    real.wait_phase(CLAIM, "Succeeded", LONG_S)
    made = Artifacts.of(real, CLAIM, CLAIM)
    kinds = {stage.partition("/")[0] for stage in made.address}
    assert kinds >= {"represent", "align", "fuse", "merge", "joint", "train", "evaluate"}
    for stage in ("fuse/fusellm", *(f"fuse/fusechat--{source}" for source in SOURCES)):
        losses = [row["fusion"] for row in made.training_log(stage)]
        assert losses[-1] < losses[0], stage
    content = json.loads((made.directory("evaluate") / "benchmarks.json").read_text(encoding="utf-8"))
    (column,) = content["columns"]
    assert {cell["system"]: cell["items"] for cell in column["cells"]} == dict.fromkeys(ROWS, HELD_OUT)
    page = (made.directory("report") / "report.html").read_text(encoding="utf-8")
    assert [name for name in ROWS if name not in page] == []
