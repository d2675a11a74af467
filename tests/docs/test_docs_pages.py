"""What README and docs claim exists: links, make targets, commands, experiments, error codes and reasons."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from support.crd_validation import refusals

from wrpo_engine.contract.stages import STAGES, registry
from wrpo_operator.api.conditions import Reason
from wrpo_operator.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), ROOT / "benchmarks" / "README.md", *(ROOT / "docs").rglob("*.md")])
GUIDE = (ROOT / "docs" / "guides" / "troubleshooting.md").read_text(encoding="utf-8")
LINK = re.compile(r"\]\((?!https?://)([^)#]+)")
ANCHOR = re.compile(r"\]\((?!https?://)([^)#]*)#([^)]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    prose = re.sub(r"`[^`]*`", "", page.read_text(encoding="utf-8"))
    links = LINK.findall(prose)
    assert [link for link in links if not (page.parent / link).exists()] == []


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_anchor_of_a_link_is_a_heading(page: Path) -> None:
    prose = re.sub(r"`[^`]*`", "", page.read_text(encoding="utf-8"))
    links = [(page.parent / link if link else page, anchor) for link, anchor in ANCHOR.findall(prose)]
    assert [f"{target.name}#{anchor}" for target, anchor in links if anchor not in anchors(target)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_make_target_that_a_page_names_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = re.findall(r"(?:`|^)make ([a-z0-9-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(named) <= targets


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_wrpo_command_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(r"(?:`|^|/)wrpo ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(named) <= set(COMMANDS)


def experiments() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
            if language == "yaml" and "kind: WRPOExperiment" in text:
                found.append((name_of(page), text))
    return found


def test_there_is_an_experiment_in_the_readme() -> None:
    assert [page for page, _ in experiments()].count("README.md") == 1


@pytest.mark.parametrize(("page", "text"), experiments())
def test_every_experiment_in_a_page_is_valid(page: str, text: str) -> None:
    assert refusals(yaml.safe_load(text)) == []


def test_every_blocker_of_the_troubleshooting_page_is_one_the_operator_gives() -> None:
    section = GUIDE.split("## `Blocked` is True")[1].split("\n## ")[0]
    named = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert len(named) >= 7
    assert set(named) <= {reason.value for reason in Reason}


def test_every_error_code_of_the_troubleshooting_page_is_one_the_engine_gives() -> None:
    section = GUIDE.split("## `Failed`, with an error of the engine")[1].split("\n## ")[0]
    named = {
        code for row in re.findall(r"^\| (`.+?`) \|", section, re.MULTILINE) for code in re.findall(r"`(\w+)`", row)
    }
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "wrpo_engine").rglob("*.py"))
    assert len(named) >= 8
    assert {code for code in named if f'"{code}"' not in sources} == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_the_stage_of_one_s_own_in_the_page_of_the_stages_is_a_valid_definition() -> None:
    page = (ROOT / "docs" / "concepts" / "stages.md").read_text(encoding="utf-8")
    (block,) = (text for language, text in FENCE.findall(page) if language == "python")
    names: dict[str, Any] = {"__name__": "my_proofreader"}
    exec(compile(block, "my_proofreader.py", "exec", dont_inherit=True), names)  # noqa: S102 (of this repository)
    known = registry([*STAGES.values(), names["PROOFREAD"]])
    assert known["proofread"].section.name == "proofread"


def test_every_file_that_a_recipe_of_the_contributor_guide_names_exists() -> None:
    recipes = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Recipes")[1]
    named = set(re.findall(r"`((?:operator|tests|wrpo_engine|docs)/[\w./-]+)`", recipes))
    tests = set(re.findall(r"`(test_\w+\.py)`", recipes))
    assert len(named) >= 15
    assert sorted(path for path in named if not (ROOT / path).exists()) == []
    assert tests - {path.name for path in (ROOT / "tests").rglob("test_*.py")} == set()
