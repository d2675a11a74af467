"""Exit codes have one home: pages, help, manifests and plan take them from `wrpo_engine.exit_codes`."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from wrpo_engine import errors
from wrpo_engine.exit_codes import FINAL_EXIT_CODES, FINAL_EXIT_CODES_TEXT, ExitCode, consequence, page
from wrpo_operator.api.lifecycle import Retries
from wrpo_operator.render.jobs import POD_FAILURE_POLICY

ROOT = Path(__file__).resolve().parents[2]
HOME = "wrpo_engine/exit_codes.py"
GENERATED = {
    "docs/reference/exit-codes.md",
    "docs/reference/wrpoexperiment.md",
    "crds/wrpoexperiments.wrpo.ai.yaml",
    "charts/wrpo-operator/files/wrpoexperiments.wrpo.ai.yaml",
    "CHANGELOG.md",
}
RANGE = re.compile(r"\b64\s*(?:to|\.\.|-|and)\s*78\b|range\(64, *7[89]\)")


def test_the_final_codes_are_those_of_sysexits_except_the_temporary_one() -> None:
    assert FINAL_EXIT_CODES == (64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 74, 76, 77, 78)
    assert [code for code in ExitCode if code.is_final] == [64, 65, 66, 73, 78]
    assert (ExitCode.TEMPORARY.is_final, ExitCode.INTERRUPTED.is_final, ExitCode.UNEXPECTED.is_final) == (False,) * 3


def test_the_reference_page_is_the_generated_one() -> None:
    assert (ROOT / "docs/reference/exit-codes.md").read_text(encoding="utf-8") == page(), "run `make crds`"


def test_what_follows_each_code_is_what_the_plan_does() -> None:
    assert {code.name: consequence(code) for code in ExitCode} == {
        "OK": "the stage has succeeded",
        "UNEXPECTED": "retried as `spec.retries` allows",
        "USAGE": "never retried",
        "BAD_DATA": "never retried",
        "NO_INPUT": "never retried",
        "CANNOT_CREATE": "never retried",
        "TEMPORARY": "retried as `spec.retries` allows",
        "CONFIG": "never retried",
        "INTERRUPTED": "counts as a disruption: another attempt, no retry used up",
    }


def test_manifest_and_field_description_are_derived() -> None:
    rules = POD_FAILURE_POLICY["rules"]
    assert [rule["onExitCodes"]["values"] for rule in rules if "onExitCodes" in rule] == [list(FINAL_EXIT_CODES)]
    assert FINAL_EXIT_CODES_TEXT in str(Retries.__doc__)


def test_every_error_of_the_engine_ends_with_a_code_of_the_list() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.WrpoError)]
    assert {kind.__name__: kind.exit_code for kind in kinds if kind.exit_code not in list(ExitCode)} == {}


def test_no_other_file_repeats_which_codes_are_final() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    wanted = (".py", ".md", ".yaml", ".tpl", ".txt", ".j2", ".json")
    repeated = [
        name
        for name in tracked
        if name.endswith(wanted)
        and name not in GENERATED | {HOME}
        and not name.startswith("tests/")
        and (ROOT / name).is_file()
        and RANGE.search((ROOT / name).read_text(encoding="utf-8"))
    ]
    assert repeated == []


@pytest.mark.parametrize("page_path", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.name)
def test_every_code_that_a_page_names_is_one_of_the_engine(page_path: Path) -> None:
    text = page_path.read_text(encoding="utf-8")
    named = {int(code) for code in re.findall(r"exit code(?:\]\([^)]*\))?\s+(\d+)", text)}
    tools = {69} if page_path.name == "testing.md" else set()
    assert named <= set(ExitCode) | tools
