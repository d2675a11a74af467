"""The repository's door: workflows, hooks and templates name what exists, and hooks run what `make check` runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
FORMS = [ROOT / ".github" / "ISSUE_TEMPLATE" / name for name in ("bug.yml", "feature.yml")]


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def recipe(target: str) -> str:
    match = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert match is not None
    return match[1]


def hooks() -> dict[str, str]:
    (local,) = loaded(ROOT / ".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    return {hook["id"]: hook["entry"] for hook in local["hooks"] if "stages" not in hook}


def test_every_part_of_make_check_has_a_hook_with_the_same_command() -> None:
    parts = re.findall(r"^check: (.*?) ##", MAKEFILE, re.MULTILINE)[0].split()
    commands = [line for part in parts for line in re.findall(r"@\$\(VENV\)/(.*)", recipe(part))]
    run = {entry.removeprefix(".venv/bin/").replace(" --force-exclude", "") for entry in hooks().values()}
    assert {command.removesuffix(" .") for command in commands} == run


def test_a_conftest_that_one_run_of_mypy_excludes_is_checked_by_another() -> None:
    config = (ROOT / "tests" / "mypy.ini").read_text(encoding="utf-8")
    excluded = re.findall(r"^exclude = (.*)$", config, re.MULTILINE)[0]
    paths = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("conftest.py")]
    directories = {path.removesuffix("/conftest.py") for path in paths if re.search(excluded, path)}
    # `operator` is a module of Python's library: mypy finds the directories below it by their own names.
    names = {path.removeprefix("tests/").removeprefix("operator/").replace("/", ".") for path in directories}
    assert set(re.findall(r"-m (\S+)\.conftest", recipe("types"))) == names


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_what_exists_and_may_only_read(path: Path) -> None:
    workflow = loaded(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    targets = set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.MULTILINE))
    for command in commands:
        words = command.split()
        programs = [word for word in words if word.startswith(("scripts/", ".ci/"))]
        assert all((ROOT / program).exists() for program in programs)
        assert words[0] != "make" or words[1] in targets


def test_the_workflow_of_ci_runs_the_script_of_ci() -> None:
    steps = loaded(ROOT / ".github" / "workflows" / "ci.yaml")["jobs"]["full"]["steps"]
    assert steps[-1] == {"run": ".ci/run"}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_an_issue_form_has_what_github_requires(path: Path) -> None:
    form = loaded(path)
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert {"name", "description", "body"} <= set(form)
    assert all(part["attributes"]["label"] for part in fields)
    assert len({part["id"] for part in fields}) == len(fields)
    assert any(part.get("validations", {}).get("required") for part in fields)
