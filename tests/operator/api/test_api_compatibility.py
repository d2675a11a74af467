"""What the last release accepted and stored is accepted now and means the same. See docs/decisions/0010.

`released/` holds the CRD of each release and objects as an API server stored them: with defaults, with statuses that
its operator wrote, with what its models made of their specs, and with the hashes of their stages. A release adds its
own two files; nobody edits those of an earlier one.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.builders import NOON, make_experiment, make_snapshot
from support.crd_validation import apply_defaults, crd_schema, experiment_object, refusals
from support.model_cluster import ModelCluster

from wrpo_operator.api.parsing import parse_spec
from wrpo_operator.api.status import MAX_ATTEMPTS, StageStatus, parse_status
from wrpo_operator.api.yamlio import load
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.plan.model import ChildState
from wrpo_operator.plan.planner import plan
from wrpo_operator.sizing.inventory import Inventory

RELEASED = Path(__file__).parent / "released"
LAST = "v0.1.0"
JsonObject = dict[str, Any]
OLD: JsonObject = load((RELEASED / f"{LAST}-crd.yaml").read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
STORED: dict[str, JsonObject] = json.loads((RELEASED / f"{LAST}-objects.json").read_text())
SAID_EARLIER = tuple(f"spec.training: {field} belongs to the " for field in ("alpha", "beta", "tau"))
"""Rules for what no release ever ran: until now a stage said so, after all the ones before it."""
CHOSEN_NOW = frozenset(
    {
        "spec.reward.batchTokens",
        "spec.reward.shards",
        "spec.sampling.shards",
        "spec.sampling.tensorParallelSize",
        "spec.training.gpusPerNode",
        "spec.training.gradientCheckpointing",
        "spec.training.microBatchTokens",
        "spec.training.nodes",
        "spec.training.offload",
    }
)
"""Fields whose default was a value and that the operator chooses now where they are unset. A stored object has the old
default written out, so it means what it meant."""
EXCLUSIVE = ("exclusiveMinimum", "exclusiveMaximum")
LOWER = ("minimum", "minLength", "minItems", "minProperties")
UPPER = ("maximum", "maxLength", "maxItems", "maxProperties")
SAME = ("type", "format", "pattern", "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
        "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields")  # fmt: skip


def least(node: JsonObject, key: str) -> float:
    """Return a lower bound; an exclusive one with a fraction is written as the nearest double inside."""
    bound: float = node.get(key, 0)
    is_open = key == "minimum" and node.get("exclusiveMinimum") and bound != int(bound)
    return math.nextafter(bound, math.inf) if is_open else bound


def most(node: JsonObject, key: str) -> float:
    bound: float = node.get(key, math.inf)
    is_open = key == "maximum" and node.get("exclusiveMaximum") and bound != int(bound)
    return math.nextafter(bound, -math.inf) if is_open else bound


def narrowed(old: JsonObject, new: JsonObject | None, path: str) -> Iterator[str]:
    """Yield every way in which the new schema takes less than the old one, or makes something else of it."""
    if new is None:
        yield f"{path} is gone"
        return
    yield from (f"{path}: {key} was {old.get(key)}, is {new.get(key)}" for key in SAME if old.get(key) != new.get(key))
    yield from (f"{path}: {key} was raised" for key in LOWER if new.get(key, 0) > least(old, key))
    yield from (f"{path}: {key} was lowered" for key in UPPER if new.get(key, math.inf) < most(old, key))
    yield from (f"{path}: {key} is new" for key in EXCLUSIVE if key in new and key not in old)
    default = without_chosen(old.get("default"), path)
    if without_additions(new.get("default"), default) != default:
        yield f"{path}: default was {old.get('default')}, is {new.get('default')}"
    if "enum" in new and not set(old.get("enum", ())) <= set(new["enum"]):
        yield f"{path}: values were taken away"
    required = set(new.get("required", ())) - set(old.get("required", ()))
    yield from (f"{path}.{name} is required now".lstrip(".") for name in required)
    for name, field in old.get("properties", {}).items():
        yield from narrowed(field, new.get("properties", {}).get(name), f"{path}.{name}".lstrip("."))
    for inner in ("items", "additionalProperties"):
        if inner in old:
            yield from narrowed(old[inner], new.get(inner), f"{path}[]")


def without_chosen(default: Any, path: str) -> Any:
    """Return a default of the last release without what the operator chooses now."""
    if isinstance(default, dict):
        return {
            key: without_chosen(value, f"{path}.{key}")
            for key, value in default.items()
            if f"{path}.{key}" not in CHOSEN_NOW
        }
    return None if path in CHOSEN_NOW else default


def test_no_field_was_removed_narrowed_or_given_another_default() -> None:
    assert list(narrowed(OLD, crd_schema(), "")) == []


def test_the_comparison_finds_what_it_has_to() -> None:
    new = copy.deepcopy(OLD)
    spec = new["properties"]["spec"]["properties"]
    del spec["retries"]
    spec["training"]["properties"]["beta"]["maximum"] = 0.5
    spec["training"]["properties"]["objective"]["enum"].remove("DPO")
    spec["sampling"]["properties"]["seed"]["default"] = 1
    new["properties"]["spec"]["required"].append("evaluation")
    found = "\n".join(narrowed(OLD, new, ""))
    for part in ("spec.retries is gone", "spec.training.beta: maximum was lowered", "values were taken away",
                 "spec.sampling.seed: default was 42, is 1", "spec.evaluation is required now"):  # fmt: skip
        assert part in found


def without_additions(meaning: Any, old: Any) -> Any:
    """Return `meaning` without fields that `old` does not have: those of later releases, at their defaults."""
    if isinstance(meaning, dict) and isinstance(old, dict):
        return {key: without_additions(value, old[key]) for key, value in meaning.items() if key in old}
    if isinstance(meaning, list) and isinstance(old, list) and len(meaning) == len(old):
        return [without_additions(*pair) for pair in zip(meaning, old, strict=True)]
    return meaning


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED.keys())
def test_a_stored_object_is_accepted_as_it_stands_and_its_spec_means_the_same(stored: JsonObject) -> None:
    assert refusals(stored["object"], OLD) == []
    assert refusals(stored["object"]) == []
    spec = parse_spec(stored["object"]["spec"])
    assert without_additions(spec.model_dump(mode="json", by_alias=True), stored["meaning"]) == stored["meaning"]
    read_again = apply_defaults(copy.deepcopy(stored["object"]), crd_schema())
    assert parse_spec(read_again["spec"]) == spec, "what the API server adds on reading means something else"


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED.keys())
def test_an_upgrade_runs_no_stage_again_before_the_evaluation(stored: JsonObject) -> None:
    """A stage with another hash would be run again, and the children of the old one deleted.

    The evaluation is divided into stages of its own, so it and the report run again, in experiments that have not
    succeeded.
    """
    graph = {str(node.id): node.hash for node in build_graph(parse_spec(stored["object"]["spec"]))}
    divided = ("evaluate", "report")
    new = {name for name in graph if name.startswith(("inspect/", "answer/", "grade/"))}
    assert {name: hash_ for name, hash_ in graph.items() if name not in {*new, *divided}} == {
        name: hash_ for name, hash_ in stored["hashes"].items() if name not in divided
    }
    assert set(divided) & graph.keys() == set(divided) & stored["hashes"].keys()


@pytest.mark.parametrize("name", ["succeeded", "failed-after-retries"])
def test_an_upgrade_starts_nothing_in_an_experiment_that_has_ended(name: str) -> None:
    """Stages that a new version adds before those that have succeeded are not run for them."""
    stored, hashes = STORED[name]["object"], STORED[name]["hashes"]
    status = parse_status(stored["status"])
    stages = tuple(stage.model_copy(update={"hash": hashes[stage.name]}) for stage in status.stages)
    status = status.model_copy(update={"stages": stages})
    experiment = make_experiment(status=status, generation=status.observed_generation or 0)
    experiment = replace(experiment, spec=parse_spec(stored["spec"]))
    answer = plan(make_snapshot(experiment, accelerators=Inventory(source="no nodes")), NOON)
    assert answer.status is not None
    assert (answer.apply, answer.status.phase) == ((), experiment.status.phase)


@pytest.mark.parametrize("name", [name for name, stored in STORED.items() if "status" in stored["object"]])
def test_a_stored_status_is_read_whole(name: str) -> None:
    raw = STORED[name]["object"]["status"]
    assert without_additions(parse_status(raw).to_dict(), raw) == raw


def leaves(node: JsonObject, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], JsonObject]]:
    for name, field in node.get("properties", {}).items():
        if field.get("type") == "object" and "properties" in field:
            yield from leaves(field, (*path, name))
        elif field.get("type") in {"integer", "number", "boolean"} or "enum" in field:
            yield (*path, name), field


LEAVES = list(leaves(OLD["properties"]["spec"]))


@st.composite
def edited_specs(draw: st.DrawFn) -> JsonObject:
    """A stored spec with some fields set to values from the old schema's own bounds."""
    spec: JsonObject = copy.deepcopy(draw(st.sampled_from(list(STORED.values())))["object"]["spec"])
    for path, field in draw(st.lists(st.sampled_from(LEAVES), min_size=1, max_size=4)):
        section = spec
        for name in path[:-1]:
            section = section.setdefault(name, {})
        section[path[-1]] = draw(values(field))
    return spec


def values(field: JsonObject) -> st.SearchStrategy[Any]:
    if "enum" in field:
        return st.sampled_from(field["enum"])
    if field["type"] == "boolean":
        return st.booleans()
    low, high = field.get("minimum", 0), field.get("maximum", 10**6)
    if field["type"] == "integer":
        return st.integers(int(low), int(high)) | st.sampled_from([int(low), int(high)])
    exclude: dict[str, Any] = {
        "exclude_min": bool(field.get("exclusiveMinimum")),
        "exclude_max": bool(field.get("exclusiveMaximum")),
    }
    return st.floats(low, high, **exclude)


@settings(max_examples=30)
@given(edited_specs())
def test_what_was_valid_is_valid(spec: JsonObject) -> None:
    obj = experiment_object(spec)
    assume(not refusals(obj, OLD))
    assert [refusal for refusal in refusals(obj) if not refusal.startswith(SAID_EARLIER)] == []
    assume(not refusals(obj))
    parse_spec(spec)


def test_counters_of_a_stage_never_fall_while_its_list_of_attempts_stays_bounded() -> None:
    cluster = ModelCluster()
    cluster.add("demo", retries={"limit": 9}, deadlines={})
    seen: dict[str, StageStatus] = {}
    longest = 0
    for round_ in range(120):
        cluster.reconcile("demo")
        for stage in cluster.experiments["demo"].status.stages:
            before = seen.get(stage.name)
            if before is not None:
                numbers = [attempt.number for attempt in stage.attempts]
                assert stage.failed_attempts >= before.failed_attempts
                assert (stage.gpu_seconds or 0) >= (before.gpu_seconds or 0)
                assert numbers == sorted(numbers)
                assert max(numbers, default=0) >= max((attempt.number for attempt in before.attempts), default=0)
                assert len(numbers) >= min(len(before.attempts), MAX_ATTEMPTS)
            longest = max(longest, len(stage.attempts))
            seen[stage.name] = stage
        for child in list(cluster.children.values()):
            if child.state is ChildState.PENDING:
                cluster.run(child.name)
            elif child.state is ChildState.RUNNING and child.stage == "prepare":
                if round_ % 2:
                    cluster.fail(child.name, 1 + child.attempt)
                else:
                    cluster.disrupt(child.name)
        cluster.advance(600)
    assert longest == MAX_ATTEMPTS
    assert max(attempt.number for attempt in seen["prepare"].attempts) > MAX_ATTEMPTS
    assert seen["prepare"].failed_attempts > 1
