"""Requests and limits: what no API server or node would take is refused, with field, value and remedy."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.crd_validation import experiment_object, refusals

from wrpo_operator.api.crd import schema
from wrpo_operator.api.parsing import SpecError, parse_spec
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.plan.resources import gpus_of, resources_of

ROOT = Path(__file__).parents[3]
BASE: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "quickstart.yaml").read_text(encoding="utf-8"))["spec"]


def errors(**changes: Any) -> tuple[str, ...]:
    try:
        parse_spec({**BASE, **changes})
    except SpecError as error:
        return error.errors
    return ()


LIMITED = "devices need a limit; set limits instead of requests."
WHOLE = "devices are counted in whole numbers; write 1 or more, or leave it out."
SAMPLE: dict[str, tuple[dict[str, Any], str]] = {
    "half a GPU": ({"limits": {"nvidia.com/gpu": "0.5"}}, f'limits["nvidia.com/gpu"] is 0.5: {WHOLE}'),
    "500 thousandths of a GPU": ({"limits": {"amd.com/gpu": "500m"}}, f'limits["amd.com/gpu"] is 500m: {WHOLE}'),
    "thousand thousandths": ({"limits": {"nvidia.com/gpu": "1000m"}}, ""),
    "half a byte": (
        {"limits": {"memory": "500m"}},
        'limits["memory"] is 500m: that is a fraction of a byte; write bytes or a suffix such as Mi or Gi.',
    ),
    "a fraction of a gibibyte": ({"limits": {"memory": "1.5Gi"}}, ""),
    "a request above its limit": (
        {"requests": {"memory": "2Gi"}, "limits": {"memory": "2G"}},
        'requests["memory"] is 2Gi, more than its limit 2G: lower the request or raise the limit.',
    ),
    "a request that equals its limit in another unit": ({"requests": {"cpu": 1}, "limits": {"cpu": "1000m"}}, ""),
    "GPUs requested only": (
        {"requests": {"nvidia.com/gpu": 1}},
        f'requests["nvidia.com/gpu"] is 1, but limits has no nvidia.com/gpu: {LIMITED}',
    ),
    "fewer GPUs requested than allowed": (
        {"requests": {"nvidia.com/gpu": 1}, "limits": {"nvidia.com/gpu": 2}},
        'requests["nvidia.com/gpu"] is 1, its limit 2: devices are not shared, both must be equal; set only limits.',
    ),
    "GPUs allowed only": ({"limits": {"nvidia.com/gpu": 2}}, ""),
}  # fmt: skip


@pytest.mark.parametrize(("resources", "expected"), SAMPLE.values(), ids=SAMPLE.keys())
def test_resources_that_no_server_would_take_are_refused(resources: Any, expected: str) -> None:
    assert errors(resources={"sample": resources}) == ((f"spec.resources.sample.{expected}",) if expected else ())


def test_resources_of_a_source_are_checked_too() -> None:
    sources = copy.deepcopy(BASE["sources"])
    sources[0]["resources"] = {"limits": {"nvidia.com/gpu": "1.5"}}
    assert [error.split(" is ")[0] for error in errors(sources=sources)] == [
        'spec.sources[0].resources.limits["nvidia.com/gpu"]'
    ]


QUANTITIES: list[Any] = [-1, 1.5, True, None, [], {}, "abc", "1 Gi", "", "-1", "1e3", "1GiB", "x" * 40]


@pytest.mark.parametrize("value", QUANTITIES, ids=map(repr, QUANTITIES))
def test_a_bad_quantity_is_one_message_without_names_of_the_library(value: Any) -> None:
    found = errors(resources={"prepare": {"requests": {"cpu": value}}})
    assert len(found) == 1
    assert found[0].startswith("spec.resources.prepare.requests.cpu is ")
    assert found[0].endswith(": write a quantity of at least 0: an integer, or a text such as 500m, 1.5 or 8Gi.")


def places(node: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    for name, child in node.get("properties", {}).items():
        yield (*path, name), child
        yield from places(child, (*path, name))


def test_no_message_names_what_only_the_library_knows() -> None:
    """A value of a wrong type in every field, one after the other: paths are those of the spec."""
    root = schema()["properties"]["spec"]
    for path, node in places(root, ()):
        for wrong in ([{"x": 1}], {"x": [1]}, 1.5, "\u0000"):
            spec = copy.deepcopy(BASE)
            below: Any = spec
            for name in path[:-1]:
                held = below.get(name)
                below[name] = held if isinstance(held, dict) else {}
                below = below[name]
            below[path[-1]] = wrong
            for error in errors(**spec):
                said = error.split(" is ", 1)[0].split(": ", 1)[0]
                assert not re.search(r"constrained|function-|union|json-or|lax-|tagged", error), (path, node, error)
                assert re.fullmatch(r"spec[\w\"./\[\]-]*", said), error


def test_gpus_of_another_vendor_are_asked_for_by_their_name() -> None:
    spec = parse_spec({**BASE, "training": {"gpusPerNode": 8, "gpuResourceName": "amd.com/gpu"}})
    nodes = {node.id.kind: node for node in build_graph(spec)}
    train = nodes["train"]
    assert resources_of(spec, train).limits["amd.com/gpu"] == 8
    assert "nvidia.com/gpu" not in resources_of(spec, train).limits
    assert gpus_of(spec, train) == 8


def test_a_source_s_resources_are_those_of_its_sampling_pods_alone() -> None:
    sources = [{"name": "a", "model": "org/a", "resources": {"limits": {"cpu": 9}}}, {"name": "b", "model": "org/b"}]
    common = {"sample": {"limits": {"cpu": 1}}, "score": {"limits": {"cpu": 2}}}
    spec = parse_spec({**BASE, "sources": sources, "resources": common})
    nodes = {str(node.id): node for node in build_graph(spec)}
    found = {
        stage: resources_of(spec, nodes[stage]).limits for stage in ("sample/a", "sample/b", "sample/target", "score/a")
    }
    assert found == {"sample/a": {"cpu": 9}, "sample/b": {"cpu": 1}, "sample/target": {"cpu": 1}, "score/a": {"cpu": 2}}


def test_the_gpus_of_sft_count_where_two_kinds_of_accelerators_are_refused() -> None:
    resources = {"sft": {"limits": {"amd.com/gpu": 8}}}
    assert errors(training={"gpusPerNode": 0}, resources=resources) == ()
    assert errors(training={"gpusPerNode": 8}, sft={"gpusPerNode": 0}, resources=resources) == ()
    (error,) = errors(training={"gpusPerNode": 0}, sft={"gpusPerNode": 4}, resources=resources)
    assert error.startswith("spec.resources.sft requests amd.com/gpu and 4 nvidia.com/gpu (gpusPerNode), ")


@pytest.mark.parametrize("name", ["amd.com/gpu", "nvidia.com/mig-1g.10gb", "gpu.intel.com/i915", "example.com/vgpu"])
def test_two_kinds_of_accelerators_in_one_pod_are_refused(name: str) -> None:
    found = errors(training={"gpusPerNode": 8}, resources={"train": {"limits": {name: 8}}})
    said = (
        f"spec.resources.train requests {name} and 8 nvidia.com/gpu (gpusPerNode), but no node has both; set"
        f" spec.training.gpuResourceName to {name} and remove {name} from spec.resources.train."
    )
    assert found == (said,)


def test_other_devices_stand_beside_gpus() -> None:
    devices = {"rdma/hca_shared": 1, "vpc.amazonaws.com/efa": 4}
    assert errors(training={"gpusPerNode": 8}, resources={"train": {"limits": devices}}) == ()


QUANTITIES_OF: dict[str, list[Any]] = {
    "nvidia.com/gpu": [0, 1, "1", "2k", "1000m", "1.0", "0.5", "1.5", "500m", "1500m", "0m"],
    "memory": [0, 1, "1", "1Gi", "1.5Gi", "2000m", "500m", "0.5", "1.25"],
    "cpu": ["0.5", "500m", "1.5"],
}


@pytest.mark.parametrize("name", QUANTITIES_OF)
@pytest.mark.parametrize("field", ["limits", "requests"])
def test_what_admission_refuses_the_operator_refuses_too_with_more_words(name: str, field: str) -> None:
    for quantity in QUANTITIES_OF[name]:
        resources = {"limits": {name: quantity}, **({"requests": {name: quantity}} if field == "requests" else {})}
        spec = {**BASE, "resources": {"sample": resources}}
        assert bool(refusals(experiment_object(spec))) is bool(errors(resources={"sample": resources})), quantity


FOUR = {"limits": {"nvidia.com/gpu": 4}}
HINT = "lower tensorParallelSize, or remove nvidia.com/gpu so that the operator chooses."
PARALLEL: dict[str, tuple[dict[str, Any], str, bool]] = {
    "a source over more than its limit": (
        {"sources": [{"name": "a", "model": "org/a", "resources": FOUR, "sampling": {"tensorParallelSize": 8}}]},
        ("spec.sources[0] divides its model over 8 accelerators (tensorParallelSize 8), but spec.sources[0].resources "
        f"gives each pod 4 nvidia.com/gpu; set nvidia.com/gpu to 8, {HINT}"), True),
    "all stages over more than the limit": (
        {"sampling": {"tensorParallelSize": 8}, "resources": {"sample": FOUR}},
        ("spec.sampling divides its model over 8 accelerators (tensorParallelSize 8), but spec.resources.sample gives "
        f"each pod 4 nvidia.com/gpu; set nvidia.com/gpu to 8, {HINT}"), True),
    "a limit as text": (
        {"sampling": {"tensorParallelSize": 8}, "resources": {"sample": {"limits": {"nvidia.com/gpu": "4"}}}},
        ("spec.sampling divides its model over 8 accelerators (tensorParallelSize 8), but spec.resources.sample gives "
        f"each pod 4 nvidia.com/gpu; set nvidia.com/gpu to 8, {HINT}"), True),
    "a pipeline counts": (
        {"sampling": {"tensorParallelSize": 4, "engineArgs": {"pipeline_parallel_size": 2}},
         "resources": {"sample": FOUR}},
        ("spec.sampling divides its model over 8 accelerators (tensorParallelSize 4 times "
        "engineArgs.pipeline_parallel_size 2), but spec.resources.sample gives each pod 4 nvidia.com/gpu; set "
        f"nvidia.com/gpu to 8, {HINT}"), False),
    "evaluation too": (
        {"sampling": {"tensorParallelSize": 2}, "resources": {"evaluate": {"limits": {"nvidia.com/gpu": 1}}}},
        ("spec.sampling divides its model over 2 accelerators (tensorParallelSize 2), but spec.resources.evaluate "
        f"gives each pod 1 nvidia.com/gpu; set nvidia.com/gpu to 2, {HINT}"), False),
    "a served judge": (
        {"evaluation": {"benchmarks": [{"name": "b", "kind": "MTBench"}],
                        "judges": [{"name": "own", "serve": {"model": "o/j", "tensorParallelSize": 8,
                                                             "resources": FOUR}}]}},
        ("spec.evaluation.judges[own].serve divides its model over 8 accelerators (tensorParallelSize 8), but "
        "spec.evaluation.judges[own].serve.resources gives each pod 4 nvidia.com/gpu; set nvidia.com/gpu to 8, "
        f"{HINT}"), False),
    "as many as the limit": ({"sampling": {"tensorParallelSize": 4}, "resources": {"sample": FOUR}}, "", False),
    "fewer than the limit": ({"sampling": {"tensorParallelSize": 2}, "resources": {"sample": FOUR}}, "", False),
    "no limit": ({"sampling": {"tensorParallelSize": 8}, "resources": {}}, "", False),
    "no parallel size": ({"sampling": {}, "resources": {"sample": FOUR}}, "", False),
    "the CPU": (
        {"sampling": {"tensorParallelSize": 2}, "resources": {"sample": {"limits": {"nvidia.com/gpu": "0"}}}},
        "", False),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "expected", "at_admission"), PARALLEL.values(), ids=PARALLEL.keys())
def test_a_model_is_divided_over_at_most_the_accelerators_of_its_pod(
    changes: dict[str, Any], expected: str, at_admission: bool
) -> None:
    whole = {"sources": [{"name": "a", "model": "org/a"}], **changes}
    assert errors(**whole) == ((expected,) if expected else ())
    refused = refusals(experiment_object({**BASE, **whole}))
    assert bool(refused) is at_admission
    assert all("tensorParallelSize exceeds the accelerators in resources" in refusal for refusal in refused)
