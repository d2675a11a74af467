"""What must hold of every training backend, those to come included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.builders import make_experiment, make_planned

from wrpo_operator.api import backends as entries
from wrpo_operator.api.names import LABEL_ATTEMPT, LABEL_QUEUE
from wrpo_operator.plan.model import Manifest
from wrpo_operator.render import RenderSettings, render_attempt
from wrpo_operator.render.training import BACKENDS, by_kind
from wrpo_operator.runtime.resources import APPLIED_RESOURCES

SETTINGS = RenderSettings()
POD_GROUPS = {"Volcano": {"podGroup": "Volcano"}, "SchedulerPlugins": {"podGroup": "SchedulerPlugins",
                                                                       "schedulerName": "co"}}  # fmt: skip
TORCHRUN = {"PET_NNODES", "PET_NODE_RANK", "PET_NPROC_PER_NODE", "PET_MASTER_ADDR", "PET_MASTER_PORT"}
each_backend = pytest.mark.parametrize("backend", entries.BACKENDS.values(), ids=entries.BACKENDS)


def rendered(backend: entries.BackendKind, **changes: Any) -> tuple[Manifest, ...]:
    """Return what is applied for a gang of two after its configuration; the child is the last."""
    training = {"nodes": 2, "gpusPerNode": 3, "backend": backend.kind}
    experiment = make_experiment(**{"training": training, "scheduling": {"gang": "BestEffort"}, **changes})
    return render_attempt(experiment, make_planned(experiment, "train"), SETTINGS)[1:]


def pod_templates(value: Any) -> Iterator[Any]:
    """Yield the pod templates in a manifest, wherever they are."""
    if isinstance(value, dict):
        if "containers" in value.get("spec", {}):
            yield value
        for part in value.values():
            yield from pod_templates(part)
    elif isinstance(value, list):
        for part in value:
            yield from pod_templates(part)


@each_backend
def test_a_backend_renders_what_its_entry_says(backend: entries.BackendKind) -> None:
    *others, child = rendered(backend)
    assert (child["apiVersion"], child["kind"]) == (backend.resource.api_version, backend.kind)
    assert [(other["apiVersion"], other["kind"]) for other in others] == [
        (companion.api_version, companion.kind) for companion in backend.companions
    ]
    for manifest in (*others, child):
        assert (manifest["apiVersion"], manifest["kind"]) in APPLIED_RESOURCES
    templates = list(pod_templates([*others, child]))
    assert templates
    for template in templates:
        assert [container["name"] for container in template["spec"]["containers"]] == [backend.container]
        assert template["metadata"]["labels"][LABEL_ATTEMPT] == "1"


@each_backend
def test_torchruns_variables_are_rendered_exactly_where_no_controller_sets_them(backend: entries.BackendKind) -> None:
    for template in pod_templates(list(rendered(backend))):
        names = {entry["name"] for entry in template["spec"]["containers"][0]["env"]}
        assert names & TORCHRUN == (TORCHRUN if backend.torchrun_variables == "operator" else set())


@each_backend
@pytest.mark.parametrize("scheduling", POD_GROUPS.values(), ids=POD_GROUPS)
def test_a_pod_group_is_rendered_exactly_where_no_controller_makes_it(
    backend: entries.BackendKind, scheduling: dict[str, str]
) -> None:
    kinds = [manifest["kind"] for manifest in rendered(backend, scheduling=scheduling)]
    assert kinds.count("PodGroup") == int(not backend.makes_pod_group)


@each_backend
def test_suspend_is_the_operators_until_a_queue_has_the_child(backend: entries.BackendKind) -> None:
    *_, own = rendered(backend)
    *_, queued = rendered(backend, scheduling={"queueName": "gpus"})
    path = ("spec", *backend.suspend_path)
    assert [_at(own, path), _at(queued, path)] == [False, None]
    assert [child["metadata"]["labels"].get(LABEL_QUEUE) for child in (own, queued)] == [None, "gpus"]


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value.get(key, {} if key != path[-1] else None)
    return value


def test_two_attempts_of_a_jobset_meet_at_their_own_addresses() -> None:
    experiment = make_experiment(training={"backend": "JobSet"})
    children = [
        render_attempt(experiment, make_planned(experiment, "train", attempt), SETTINGS)[-1] for attempt in (1, 2)
    ]
    meetings = []
    for child in children:
        (template,) = pod_templates(child)
        env = {entry["name"]: entry.get("value") for entry in template["spec"]["containers"][0]["env"]}
        name = child["metadata"]["name"]
        assert env["PET_MASTER_ADDR"] == f"{name}-node-0-0.{child['spec']['network']['subdomain']}"
        meetings.append(env["PET_MASTER_PORT"])
    assert int(meetings[1]) == int(meetings[0]) + 1


def test_a_backend_of_which_a_part_is_missing_does_not_import() -> None:
    backends, kinds = tuple(BACKENDS.values()), dict(entries.BACKENDS)
    assert by_kind(backends, kinds) == BACKENDS
    with pytest.raises(ImportError, match=r"JobSet is incomplete: only api/backends\.py has an entry for it"):
        by_kind(tuple(backend for backend in backends if backend.facts.kind != "JobSet"), kinds)
    del kinds["TrainJob"]
    with pytest.raises(ImportError, match="TrainJob is incomplete: only render/training renders it"):
        by_kind(backends, kinds)
