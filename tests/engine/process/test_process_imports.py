"""What the start of a stage imports: only what the stage uses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping

import pytest

from wrpo_engine.contract.stages import STAGES

WITHOUT_TORCH = (
    "align", "bench", "curate-sft", "curate-triples", "evaluate", "fetch", "grade", "inspect", "judge", "prepare",
    "rank", "report", "score", "select",
)  # fmt: skip
"""Stages whose modules import no model library; those that load a model import it then."""
HEAVY = ("accelerate", "boto3", "datasets", "pandas", "pyarrow", "scipy", "sklearn", "torch", "transformers", "vllm")
PROBE = """
import importlib, json, sys
from wrpo_engine.process.unused_libraries import skip_unused_libraries

skip_unused_libraries()
heavy, modules = json.loads(sys.argv[1])
found = {}
for module in modules:
    before = set(sys.modules)
    importlib.import_module(module)
    found[module] = sorted((sys.modules.keys() - before) & set(heavy))
from transformers import AutoModelForCausalLM, AutoTokenizer
AutoModelForCausalLM, AutoTokenizer
from accelerate.commands.config import sagemaker
found["transformers"] = sorted(sys.modules.keys() & set(heavy))
from sklearn.metrics import roc_curve
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def imported() -> Mapping[str, list[str]]:
    """Heavy libraries that each module imports, in one process: it takes five seconds of CPU time."""
    modules = [STAGES[kind].run.split(":")[0] for kind in WITHOUT_TORCH]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps([HEAVY, modules])], capture_output=True, text=True, check=True
    )
    found: Mapping[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kind", WITHOUT_TORCH)
def test_a_stage_starts_without_libraries_that_it_may_not_need(kind: str, imported: Mapping[str, list[str]]) -> None:
    assert imported[STAGES[kind].run.split(":")[0]] == []


def test_transformers_imports_no_library_that_no_stage_uses(imported: Mapping[str, list[str]]) -> None:
    """scikit-learn alone, with SciPy and pandas, took a quarter of the time of this import."""
    assert imported["transformers"] == ["accelerate", "torch", "transformers"]
