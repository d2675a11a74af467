"""The example sweeps are accepted, and hold every row of the paper's tables that is a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.crd_validation import refusals

from wrpo_engine.contract.evaluation import EvaluateParams
from wrpo_operator.api.parsing import parse_spec
from wrpo_operator.api.sweep import parse_sweep
from wrpo_operator.api.sweep_crd import sweep_schema
from wrpo_operator.api.yamlio import load_all
from wrpo_operator.cli.sweep_plan import expanded
from wrpo_operator.plan.graph import build_graph

EXAMPLES = Path(__file__).parents[3] / "examples"
FILES = {path.stem: path for path in (*sorted((EXAMPLES / "paper").glob("*.yaml")), EXAMPLES / "sweep-laptop.yaml")}
ROWS = {
    ("main", "Target-DPO"): "target-dpo",
    ("main", "Target-SimPO"): "target-simpo",
    ("main", "Target-IPO"): "target-ipo",
    ("main", "Target-SFT"): "sft",
    ("main", "SFT-DPO"): "sft-dpo",
    ("main", "WRPO-Medium"): "wrpo-medium",
    ("main", "WRPO"): "wrpo",
    ("objectives", "DPO"): "sft-dpo",
    ("objectives", "SimPO"): "sft-simpo",
    ("objectives", "IPO"): "sft-ipo",
    ("objectives", "WRPO-DPO"): "wrpo-dpo",
    ("objectives", "WRPO-SimPO"): "wrpo-simpo",
    ("objectives", "WRPO-IPO"): "wrpo-ipo",
    ("sources", "1"): "sources-1",
    ("sources", "2"): "sources-2",
    ("sources", "5"): "sources-5",
    ("sources", "10"): "sources-all",
    ("ablations", "without y_ws"): "no-y-ws",
    ("ablations", "without y_wt"): "no-y-wt",
    ("ablations", "static alpha"): "static-alpha",
    ("ablations", "alpha 0.1"): "alpha-0.1",
    ("ablations", "alpha 0.3"): "alpha-0.3",
    ("ablations", "alpha 0.5"): "alpha-0.5",
    ("ablations", "alpha 0.7"): "alpha-0.7",
    ("ablations", "alpha 0.9"): "alpha-0.9",
}


SYSTEMS = {
    "Mistral-Large": ("mistral-large", "source"),
    "Gemma2-27B": ("gemma-2-27b", "source"),
    "Qwen2-72B": ("qwen2-72b", "source"),
    "LLaMA3-70B": ("llama-3-70b", "source"),
    "Gemma2-9B": ("gemma-2-9b", "source"),
    "DeepSeek-V2": ("deepseek-v2", "source"),
    "DeepSeek-Coder-V2": ("deepseek-coder-v2", "source"),
    "Yi-1.5-34B": ("yi-1-5-34b", "source"),
    "Phi-3-Medium": ("phi-3-medium", "source"),
    "PackLLM-Top1-PPL": ("packllm", "select"),
    "LLM-Blender-Top1": ("llm-blender", "select"),
    "MoA": ("moa", "mixture"),
    "Target-FuseLLM": ("target-fusellm", "fuse"),
    "Target-FuseChat": ("target-fusechat", "fuse"),
}
"""Rows of the main table that are systems of the variant `wrpo`, with their form. The target is evaluated anyhow."""


def sweep_of(name: str) -> dict[str, Any]:
    (document,) = load_all(FILES[name].read_text(encoding="utf-8"))
    found: dict[str, Any] = document
    return found


def specs(name: str) -> dict[str, Any]:
    document = sweep_of(name)
    found, _ = expanded(name, document["spec"], parse_sweep(document["spec"]))
    assert found.errors == ()
    return {row.name: parse_spec(row.experiments[0].spec) for row in found.rows}


@pytest.mark.parametrize("name", FILES)
def test_an_example_is_accepted_by_the_schema_and_every_variant_is_valid(name: str) -> None:
    assert refusals(sweep_of(name), sweep_schema()) == []
    assert specs(name)


@pytest.mark.parametrize(("table", "row"), ROWS, ids=" ".join)
def test_every_row_of_the_papers_tables_is_a_variant(table: str, row: str) -> None:
    assert ROWS[table, row] in specs(table)


@pytest.mark.parametrize("row", SYSTEMS)
def test_every_further_row_of_the_main_table_is_a_system(row: str) -> None:
    name, form = SYSTEMS[row]
    (system,) = (system for system in specs("main")["wrpo"].evaluation.systems if system.name == name)
    assert getattr(system, form) is not None


def test_the_main_table_has_a_row_of_the_target_and_of_each_system() -> None:
    aggregation = next(node for node in build_graph(specs("main")["wrpo"]) if str(node.id) == "evaluate").params
    assert isinstance(aggregation, EvaluateParams)
    systems = [name for name, _ in SYSTEMS.values()]
    assert [row.label for row in aggregation.systems] == ["target", "sft", "WRPO-DPO", *systems]


def test_the_variants_are_what_their_rows_say() -> None:
    main = specs("main")
    for name, objective in (("target-dpo", "DPO"), ("target-simpo", "SimPO"), ("target-ipo", "IPO")):
        assert (main[name].training.objective, main[name].sft.enabled, main[name].prompts.sft_fraction) == (
            objective,
            False,
            0.0,
        )
    assert (main["sft-dpo"].training.objective, main["sft-dpo"].sft.enabled) == ("DPO", True)
    assert len(main["wrpo-medium"].sources) == 5
    assert {name: len(spec.sources) for name, spec in specs("sources").items() if name.startswith("sources-")} == {
        "sources-all": 9,
        "sources-1": 1,
        "sources-2": 2,
        "sources-5": 5,
    }
    alphas = {
        name: (spec.training.alpha.schedule, spec.training.alpha.max) for name, spec in specs("ablations").items()
    }
    assert alphas["no-y-ws"] == ("Constant", 0.0)
    assert alphas["no-y-wt"] == ("Constant", 1.0)
    assert alphas["static-alpha"] == ("Constant", 0.1)
    assert alphas["alpha-0.7"] == ("Linear", 0.7)
