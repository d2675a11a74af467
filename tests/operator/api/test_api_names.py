"""Names of children, labels, hashes, times and the stored status."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from support.builders import NOON

from wrpo_operator.api.hashing import artifact_key, canonical_json, stage_hash
from wrpo_operator.api.names import child_name, stage_from_label, stage_label
from wrpo_operator.api.status import ExperimentStatus, Phase, StageState, StageStatus, from_time, parse_status, to_time

STAGES = st.sampled_from(["prepare", "curate-triples", "train", "sample/" + "a" * 20, "score/target"])
EXPERIMENTS = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", fullmatch=True)
HASH = "0123456789abcdef"


def test_a_short_name_is_readable() -> None:
    assert child_name("demo", "sample/qwen", HASH, 2) == "demo-sample-qwen-01234567-a2"


def test_a_long_experiment_name_is_cut_and_told_apart() -> None:
    first = child_name("a-rather-long-name-of-an-experiment-1", "curate-triples", HASH, 1)
    second = child_name("a-rather-long-name-of-an-experiment-2", "curate-triples", HASH, 1)
    assert first == "a-rather-long-nam-17595-curate-triples-01234567-a1"
    assert first != second


@given(EXPERIMENTS, STAGES, st.integers(1, 999))
def test_child_names_are_valid_names_of_services_too(experiment: str, stage: str, attempt: int) -> None:
    name = child_name(experiment, stage, HASH, attempt)
    assert len(name) <= 50
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name)


@given(EXPERIMENTS, EXPERIMENTS, STAGES)
def test_two_experiments_have_different_children(first: str, second: str, stage: str) -> None:
    same = child_name(first, stage, HASH, 1) == child_name(second, stage, HASH, 1)
    assert same is (first == second)


def test_a_stage_survives_its_label() -> None:
    assert stage_label("sample/qwen-2") == "sample.qwen-2"
    assert [stage_from_label(stage_label(stage)) for stage in ("train", "sample/a-b")] == ["train", "sample/a-b"]


def test_canonical_json_has_one_form() -> None:
    assert canonical_json({"b": [1, 0.1], "a": "é"}) == '{"a":"\\u00e9","b":[1,0.1]}'


def test_a_stage_hash_depends_on_everything_that_is_computed() -> None:
    base = stage_hash("train", {"beta": 0.1}, {"sft": HASH}, "")
    others = [
        stage_hash("sft", {"beta": 0.1}, {"sft": HASH}, ""),
        stage_hash("train", {"beta": 0.2}, {"sft": HASH}, ""),
        stage_hash("train", {"beta": 0.1}, {"sft": "f" * 16}, ""),
        stage_hash("train", {"beta": 0.1}, {"sft": HASH}, "again"),
    ]
    assert re.fullmatch("[0-9a-f]{16}", base)
    assert len({base, *others}) == 5


def test_an_artifact_key_tells_storages_apart() -> None:
    keys = {artifact_key({"claim": claim, "path": ""}, "train", HASH) for claim in ("a", "b")}
    assert len(keys) == 2


def test_times_are_whole_seconds_of_utc() -> None:
    assert to_time(NOON) == "2026-01-01T12:00:00Z"
    assert from_time(to_time(NOON)) == NOON


def test_a_status_survives_being_stored() -> None:
    stage = StageStatus(name="train", state=StageState.RUNNING, hash=HASH, metrics={"loss": 0.5})
    status = ExperimentStatus(observed_generation=2, phase=Phase.RUNNING, stages=(stage,))
    assert parse_status(status.to_dict()) == status


def test_a_status_leaves_out_what_is_unset() -> None:
    stage = StageStatus(name="train", state=StageState.PENDING, hash=HASH)
    assert ExperimentStatus(stages=(stage,)).to_dict()["stages"] == [
        {"name": "train", "state": "Pending", "hash": HASH, "attempts": [], "forgivenAttempts": 0, "failedAttempts": 0}
    ]


def test_a_status_edited_by_hand_into_nonsense_counts_as_none() -> None:
    assert parse_status({"stages": "all of them"}) == ExperimentStatus()
    assert parse_status(None) == ExperimentStatus()
