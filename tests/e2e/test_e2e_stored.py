"""A real operator process beside objects and refusals that no user means: the healthy experiments continue."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_support import (
    EXTERNAL,
    JsonObject,
    Kube,
    break_api,
    claim,
    experiment,
    make_namespace,
    simulate,
    simulated_cluster,
)
from local_operator import LocalOperator
from support.patience import wait_until
from support.refusal_words import WORDS

from wrpo_operator.api.conditions import ConditionType

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(EXTERNAL, reason="does to the cluster what nobody should do to a shared one"),
]
DEPTH = 1_500
REFUSALS = {
    "quota": (403, "quota", "QuotaExceeded"),
    "typed": (500, "typed patch", "InvalidSpec"),
    "conversion": (500, "conversion", "InvalidSpec"),
    "validation": (422, "validation", "InvalidSpec"),
    "immutable": (422, "immutable", "NameTaken"),
    "long": (400, "6,000 characters", "InvalidSpec"),
    "longest": (403, "1,000,000 characters", "ApiRefused"),
    "script": (451, "another script", "ApiRefused"),
    "nothing": (503, "nothing", "ApiRefused"),
}
"""Namespace -> code, words, and the reason that the user is told."""


def pod_spec(**fields: Any) -> JsonObject:
    return {"podTemplate": {"spec": fields}}


ODD: dict[str, tuple[JsonObject, str]] = {
    "deep": (pod_spec(affinity="DEEP"), "spec.podTemplate.spec.affinity"),
    "deep-list": (pod_spec(volumes="DEEP LIST"), "spec.podTemplate.spec.volumes"),
    "large": (
        {"podTemplate": {"metadata": {"annotations": {f"a{index}": "x" * 10_000 for index in range(118)}}}},
        "",
    ),
    "emoji": (pod_spec(nodeSelector={"🦙": "🦙"}), "spec.podTemplate.spec.nodeSelector"),
    "types": (
        pod_spec(terminationGracePeriodSeconds={"a": -1e308}),
        "spec.podTemplate.spec.terminationGracePeriodSeconds",
    ),
    "nulls": (pod_spec(containers=[None]), "spec.podTemplate.spec.containers"),
}
"""Name -> part of the spec, and the path that the message has to name; empty: nothing is wrong with it."""


@pytest.fixture
def kube(tmp_path: Path) -> Iterator[Kube]:
    with simulated_cluster(tmp_path) as cluster:
        cluster.local = LocalOperator(cluster.kubeconfig, {}, "default", "one", tmp_path / "operator.log")
        cluster.local.start()
        try:
            wait_until("the operator is ready", cluster.local.ready)
            yield cluster
        finally:
            cluster.local.kill()


def post(kube: Kube, namespace: str, body: str) -> None:
    path = f"/apis/wrpo.ai/v1alpha1/namespaces/{namespace}/wrpoexperiments"
    kube.run("kubectl", "create", "--raw", path, "-f", "-", stdin=body)


def told(kube: Kube, namespace: str) -> JsonObject:
    """Return the status of each experiment. Their specs are left out: Python cannot read all of them."""
    template = '{range .items[*]}{.metadata.name}{"\\t"}{.status}{"\\n"}{end}'
    text = kube.run("kubectl", "-n", namespace, "get", "wrpoexperiments", "-o", f"jsonpath={template}")
    pairs = [line.split("\t", 1) for line in text.splitlines()]
    return {name: json.loads(status or "{}") for name, status in pairs}


def conditions(status: JsonObject) -> JsonObject:
    return {entry["type"]: entry for entry in status.get("conditions") or ()}


def assert_whole(status: JsonObject) -> None:
    assert status["observedGeneration"] == 1
    assert status["phase"] in {"Pending", "Running", "Invalid", "Succeeded"}
    assert set(conditions(status)) == {kind.value for kind in ConditionType}


def test_objects_that_nobody_can_use_get_a_status_and_a_healthy_experiment_succeeds(kube: Kube) -> None:
    assert kube.local is not None
    make_namespace(kube, "odd", "restricted")
    kube.run("kubectl", "-n", "odd", "create", "-f", "-", stdin=json.dumps(claim()))
    for name, (spec, _) in ODD.items():
        body = json.dumps(experiment(name, **spec), ensure_ascii=False)
        body = body.replace('"DEEP"', '{"a":' * DEPTH + "1" + "}" * DEPTH)
        post(kube, "odd", body.replace('"DEEP LIST"', "[" * DEPTH + "]" * DEPTH))
    kube.apply(experiment("healthy", **simulate(run_seconds="2")))
    wait_until("prepare has begun", lambda: kube.stage("healthy", "prepare").get("attempts"))
    kube.local.kill()
    kube.local.start()
    kube.wait_phase("healthy", "Succeeded")
    assert {len(stage["attempts"]) for stage in kube.status("healthy")["stages"]} == {1}

    statuses = told(kube, "odd")
    assert set(statuses) == set(ODD)
    for name, (_, path) in ODD.items():
        assert_whole(statuses[name])
        accepted = conditions(statuses[name])["Accepted"]
        assert (name, accepted["status"]) == (name, "False" if path else "True")
        assert path in accepted["message"], f"{name}: {accepted['message']}"


def test_refusals_of_any_code_and_wording_give_a_whole_status_within_seconds(kube: Kube) -> None:
    for namespace, (code, words, _) in REFUSALS.items():
        make_namespace(kube, namespace, "restricted")
        fault = {"code": code, "message": WORDS[words], "verb": "patch", "resource": "jobs", "namespace": namespace}
        break_api(kube, refuse={**fault, "times": 100_000})
        kube.run("kubectl", "-n", namespace, "create", "-f", "-", stdin=json.dumps(claim()))
        post(kube, namespace, json.dumps(experiment("fusion")))

    def blocked() -> JsonObject | None:
        found = {namespace: told(kube, namespace)["fusion"] for namespace in REFUSALS}
        return found if all(status.get("blockers") for status in found.values()) else None

    for namespace, status in wait_until("each experiment says what is refused", blocked, every_s=1).items():
        assert_whole(status)
        assert (namespace, status["blockers"][0]["reason"]) == (namespace, REFUSALS[namespace][2])
        assert len(status["blockers"][0]["message"]) > 40
    break_api(kube, clear=True)
