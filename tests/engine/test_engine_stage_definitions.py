"""A stage is one definition: one that lacks anything, contradicts itself or another one, does not import."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ValidationError
from support.extensions import SHOUT, install, python_path
from support.patience import LIMIT_S

from wrpo_engine.config import StageParams
from wrpo_engine.contract.builtin import BUILT_IN
from wrpo_engine.contract.definition import Per, ReportPlace, Section, StageDefinition
from wrpo_engine.contract.stage_config import StageConfig
from wrpo_engine.contract.stages import SECTIONS, STAGES, definition_of, registry
from wrpo_engine.errors import ConfigError

PREPARE, TRAIN = STAGES["prepare"], STAGES["train"]


class JudgeParams(StageParams):
    stage: Literal["judge"] = "judge"


class NamelessParams(StageParams):
    pass


class TwoNamesParams(StageParams):
    stage: Literal["one", "two"] = "one"


class DashedParams(StageParams):
    stage: Literal["judge-"] = "judge-"


class ShoutingParams(StageParams):
    stage: Literal["Judge"] = "Judge"


def fields(**changes: Any) -> dict[str, Any]:
    """The fields of a valid definition of a stage `judge`, changed as named."""
    values = {name: getattr(PREPARE, name) for name in StageDefinition.model_fields}
    return values | {"params": JudgeParams, "role": "judgements"} | changes


def test_the_kinds_are_in_the_order_of_an_experiment() -> None:
    assert list(STAGES)[: len(BUILT_IN)] == [
        "prepare", "fetch", "inspect", "sample", "score", "curate-sft", "represent", "align", "sft",
        "curate-triples", "train", "merge",
        "bench", "fuse", "answer", "mixture", "joint", "perplexity", "rank", "grade", "select", "judge",
        "evaluate", "report",
    ]  # fmt: skip


@pytest.mark.parametrize("missing", StageDefinition.model_fields)
def test_a_definition_that_lacks_a_field_does_not_import(missing: str) -> None:
    values = fields()
    del values[missing]
    with pytest.raises(ValidationError) as caught:
        StageDefinition(**values)
    faults = caught.value.errors()
    assert [(fault["loc"], fault["msg"]) for fault in faults] == [((missing,), "Field required")]


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown field": ({"colour": "red"}, "Extra inputs are not permitted"),
    "parameters that name no kind": (
        {"params": NamelessParams},
        'NamelessParams must name its kind: add the field `stage: Literal["KIND"] = "KIND"`'),
    "parameters that name two kinds": ({"params": TwoNamesParams}, "TwoNamesParams must name its kind: "),
    "parameters that are none": ({"params": dict}, "Input should be a subclass of StageParams"),
    "a kind that no address can hold": (
        {"params": ShoutingParams},
        "the kind 'Judge' of ShoutingParams must consist of at most 21 lower-case letters, digits and dashes"),
    "a kind that ends with a dash": ({"params": DashedParams}, "the kind 'judge-' of DashedParams must consist of"),
    "a reference without a function": ({"run": "wrpo_engine.judging"}, "String should match pattern"),
    "a weight of nothing": ({"weight": 0}, "Input should be greater than or equal to 1"),
    "a shape in words": ({"shape": "gang"}, "Input should be an instance of Shape"),
    "no help": ({"summary": ""}, "String should have at least 1 character"),
    "a column of the target where there is no target": (
        {"report": ReportPlace(column=1, column_of_target=5, counts="rows", key_metrics=())},
        "report.column_of_target is for kinds with per=SOURCE; remove it"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_a_definition_with_a_fault_does_not_import(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        StageDefinition(**fields(**changes))
    assert message in str(caught.value)


def judge(**changes: Any) -> StageDefinition:
    return StageDefinition(**fields(**changes))


CONFLICTS: dict[str, tuple[Callable[[], list[StageDefinition]], str]] = {
    "one kind twice": (
        lambda: [judge(), judge(role="others")],
        "params.stage of the stage judge is 'judge': a stage of this kind is defined already"),
    "one role twice": (
        lambda: [PREPARE, judge(role="prompts")],
        "role of the stage judge is 'prompts': it is the role of the stage prepare"),
    "a role that nothing has": (
        lambda: [PREPARE, judge(inputs=("prompts", "answers"))],
        "inputs of the stage judge is 'answers': no stage has this role; roles are prompts, judgements"),
    "one section described twice": (
        lambda: [PREPARE, judge(section=Section(name="prepare", resources="Others.", deadlines="Others."))],
        "section of the stage judge is 'prepare': another stage describes the section of this name differently"),
}  # fmt: skip


@pytest.mark.parametrize(("definitions", "message"), CONFLICTS.values(), ids=CONFLICTS.keys())
def test_definitions_that_contradict_each_other_are_refused(
    definitions: Callable[[], list[StageDefinition]], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        registry(definitions())
    assert caught.value.message == message
    assert (caught.value.exit_code, caught.value.code) == (78, "InvalidStage")


@pytest.mark.parametrize("definition", BUILT_IN, ids=lambda definition: definition.kind)
def test_the_function_that_runs_a_stage_exists(definition: StageDefinition) -> None:
    # Read, not imported: some need torch, which takes seconds.
    module, function = definition.run.split(":")
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_stages_are_found_by_kind_and_by_whole_name() -> None:
    assert definition_of("train") is TRAIN
    assert definition_of("sample/qwen") is STAGES["sample"]
    assert definition_of("shout") is None


def test_training_stages_count_steps_and_all_others_rows() -> None:
    counts = {kind: definition.report.counts for kind, definition in STAGES.items() if definition.report}
    assert {kind for kind, counted in counts.items() if counted == "steps"} == {"sft", "train"}
    assert set(counts.values()) == {"steps", "rows"}


def test_sections_are_listed_once_in_the_order_of_the_stages() -> None:
    assert [section.name for section in SECTIONS] == [
        "prepare", "sample", "score", "curate", "sft", "train", "evaluate", "report", "judge",
    ]  # fmt: skip


@pytest.mark.parametrize("definition", BUILT_IN, ids=lambda definition: definition.kind)
def test_a_stage_file_takes_the_parameters_of_every_kind(definition: StageDefinition) -> None:
    named = f"{definition.kind}/a" if definition.per is not Per.EXPERIMENT else definition.kind
    schema = StageConfig.model_json_schema()["properties"]["params"]["discriminator"]["mapping"]
    assert schema[definition.kind] == f"#/$defs/{definition.params.__name__}"
    assert definition_of(named) is definition


def engine(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wrpo_engine", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={
            **os.environ,
            "PYTHONPATH": python_path(directory),
            "WRPO_TERMINATION_MESSAGE_PATH": str(directory / "termination-log"),
        },
        check=False,
        timeout=LIMIT_S,
    )


BROKEN: dict[str, tuple[str, str, str]] = {
    "a definition that lacks a field": (
        "    weight=17,\n", "", "StageDefinition is not complete and valid: weight: Field required"),
    "a module that does not import": (
        "from pydantic import Field\n", "import nothing_of_this_name\nfrom pydantic import Field\n",
        "it cannot be imported: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
    "a name that is no definition": (
        "SHOUT = ", "SHOUT = 'loud'\n_OTHER = ", "it must name a StageDefinition, not a str"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "rule"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_definition_of_another_distribution_is_named_and_final(
    tmp_path: Path, old: str, new: str, rule: str
) -> None:
    module = tmp_path / "shout_stage.py"
    text = SHOUT.read_text(encoding="utf-8")
    assert old in text
    module.write_text(text.replace(old, new, 1), encoding="utf-8")
    directory = install(tmp_path / "installed", module)
    ran = engine(directory, "prepare", "--config", "stage.json")
    assert ran.returncode == 78
    assert ran.stderr == (
        f"error: entry point shout of the group wrpo.stages is 'shout_stage:SHOUT': {rule}\n"
        "hint: Correct or uninstall the distribution shout.\n"
    )
    left = json.loads((directory / "termination-log").read_text(encoding="utf-8"))
    assert (left["outcome"], left["exit_code"], left["error"]["code"]) == ("Failed", 78, "InvalidStage")


def test_a_stage_of_another_distribution_is_part_of_the_help(tmp_path: Path) -> None:
    ran = engine(install(tmp_path), "--help")
    assert ran.returncode == 0
    assert "  Stages of other distributions:\n    shout  write the prompts in capitals\n" in ran.stdout


def test_a_stage_that_the_image_does_not_have_is_reported_to_the_operator(tmp_path: Path) -> None:
    ran = engine(tmp_path, "shout", "--config", "stage.json")
    assert ran.returncode == 64
    error = json.loads((tmp_path / "termination-log").read_text(encoding="utf-8"))["error"]
    assert error["message"].startswith(
        "Invalid value for 'STAGE': 'shout' is not one of 'prepare', 'fetch', 'inspect', "
    )
    assert error["hint"] == (
        "See `wrpo-engine --help`. If the operator runs a stage that is missing there, the image lacks its "
        "distribution or is of another version."
    )


def test_a_stage_with_the_name_of_a_tool_is_refused(tmp_path: Path) -> None:
    module = tmp_path / "shout_stage.py"
    module.write_text(SHOUT.read_text(encoding="utf-8").replace('"shout"', '"lint"'), encoding="utf-8")
    ran = engine(install(tmp_path / "installed", module), "prepare", "--config", "stage.json")
    assert ran.returncode == 78
    assert ran.stderr == ("error: kind of stage is 'lint': a tool has this name\nhint: Give the stage another name.\n")


@pytest.mark.parametrize("name", ["copy", "json", "model_dump", "Toy", "a_b"])
def test_a_section_that_no_field_can_have_the_name_of_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=r"1 validation error for Section\nname\n"):
        Section(name=name, resources="Its pods.", deadlines="The stage.")
