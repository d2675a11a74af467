"""The optional admission policy: evaluated by a CEL library over experiments that pass and that do not."""

from __future__ import annotations

import copy
import functools
from typing import Any

import cel
import pytest
from chart_support import JsonObject, one, refused, render
from support.builders import raw_spec
from support.crd_validation import apply_defaults, crd_schema, experiment_object

LIMITS = (
    'admissionPolicy={"enabled":true,"imageRegistries":["registry.example.com/team/","ghcr.io/org"],'
    '"s3Prefixes":["s3://lab/wrpo"],"s3Endpoints":["https://minio.lab:9000"],"claimNames":["artifacts"],'
    '"hubOwners":["org","HuggingFaceH4"]}'
)
NAME = "wrpo-operator-wrpo-system"


@functools.cache
def policy() -> JsonObject:
    return one(render(LIMITS), "ValidatingAdmissionPolicy", NAME)


def judged(obj: JsonObject, old: JsonObject | None = None) -> list[str]:
    """Return the messages with which the policy refuses `obj`."""
    spec = policy()["spec"]
    bound: dict[str, Any] = {"object": obj, "oldObject": old, "variables": {}}
    if not all(cel.evaluate(condition["expression"], bound) for condition in spec["matchConditions"]):
        return []
    for variable in spec["variables"]:
        bound["variables"][variable["name"]] = cel.evaluate(variable["expression"], bound)
    return [rule["message"] for rule in spec["validations"] if cel.evaluate(rule["expression"], bound) is not True]


def admitted(**changes: Any) -> JsonObject:
    """Return an experiment within the limits, defaulted as the API server does, with changes."""
    allowed: dict[str, Any] = {
        "target": {"model": "org/target"},
        "sources": [{"name": "a", "model": "org/a"}, {"name": "b", "model": "/models/b"}],
        "prompts": {"dataset": "HuggingFaceH4/ultrafeedback"},
        "reward": {"model": "storage://reward"},
        "storage": {"volume": {"claimName": "artifacts"}},
    }
    obj = experiment_object({**raw_spec(), **allowed, **changes})
    found: JsonObject = apply_defaults(copy.deepcopy(obj), crd_schema())
    return found


PASS: dict[str, dict[str, Any]] = {
    "the operator's images": {},
    "an image of the registry": {"images": {"trainer": "registry.example.com/team/trainer:1"}},
    "object storage below the prefix": {"storage": {"s3": {"uri": "s3://lab/wrpo/me"}}},
    "the prefix itself": {"storage": {"s3": {"uri": "s3://lab/wrpo"}}},
    "a known endpoint": {"storage": {"s3": {"uri": "s3://lab/wrpo/me", "endpoint": "https://minio.lab:9000"}}},
    "an init container of the registry": {
        "podTemplate": {"spec": {"initContainers": [{"name": "a", "image": "ghcr.io/org/a"}], "volumes": [
            {"name": "a", "persistentVolumeClaim": {"claimName": "artifacts"}}, {"name": "b", "emptyDir": {}}]}}},
    "another variable": {"env": [{"name": "HF_HUB_OFFLINE", "value": "1"}], "podTemplate": {"spec": {"containers": [
        {"name": "stage", "env": [{"name": "NCCL_DEBUG", "value": "INFO"}]}]}}},
    "only metadata in the template": {"podTemplate": {"metadata": {"labels": {"a": "b"}}}},
    "a reward function": {"reward": {"function": "length"}},
}  # fmt: skip
FAIL: dict[str, tuple[dict[str, Any], str]] = {
    "another registry": ({"images": {"sampler": "docker.io/evil/sampler"}}, "spec.images"),
    "a registry that only begins alike": ({"images": {"trainer": "ghcr.io/organised/trainer"}}, "spec.images"),
    "an image in the template": (
        {"podTemplate": {"spec": {"containers": [{"name": "stage", "image": "evil/image"}]}}},
        "images in spec.podTemplate",
    ),
    "an init container's image": (
        {"podTemplate": {"spec": {"initContainers": [{"name": "a", "image": "evil/image"}]}}},
        "images in spec.podTemplate",
    ),
    "another bucket": ({"storage": {"s3": {"uri": "s3://other/wrpo"}}}, "spec.storage.s3.uri"),
    "a prefix that only begins alike": ({"storage": {"s3": {"uri": "s3://lab/wrpo-evil"}}}, "spec.storage.s3.uri"),
    "another endpoint": (
        {"storage": {"s3": {"uri": "s3://lab/wrpo/a", "endpoint": "https://evil.example"}}},
        "spec.storage.s3.endpoint",
    ),
    "another claim": ({"storage": {"volume": {"claimName": "other"}}}, "spec.storage.volume.claimName"),
    "another claim in the template": (
        {"podTemplate": {"spec": {"volumes": [{"name": "a", "persistentVolumeClaim": {"claimName": "other"}}]}}},
        "claims in spec.podTemplate",
    ),
    "another owner's target": ({"target": {"model": "evil/target"}}, "spec.target"),
    "another owner's source": ({"sources": [{"name": "a", "model": "evil/a"}]}, "sources"),
    "another owner's reward": ({"reward": {"model": "evil/reward"}}, "reward"),
    "another owner's further reward": (
        {"reward": {"model": "org/r", "additional": [{"name": "x", "model": "evil/r"}]}},
        "reward",
    ),
    "another owner's prompts": ({"prompts": {"dataset": "evil/prompts"}}, "prompts"),
    "another hub": ({"env": [{"name": "HF_ENDPOINT", "value": "https://evil.example"}]}, "spec.env"),
    "another hub in the template": (
        {"podTemplate": {"spec": {"containers": [{"name": "stage", "env": [{"name": "HF_ENDPOINT", "value": "x"}]}]}}},
        "spec.podTemplate",
    ),
    "an environment that nobody sees": (
        {"podTemplate": {"spec": {"containers": [{"name": "stage", "envFrom": [{"configMapRef": {"name": "a"}}]}]}}},
        "spec.podTemplate",
    ),
    **{
        f"another owner's {what}": ({"evaluation": {section: [{"name": "x", **item}]}}, "evaluation")
        for what, section, item in (
            ("system", "systems", {"model": {"model": "evil/x"}}),
            ("ranker", "systems", {"select": {"by": "PairRM", "members": ["*"], "ranker": {"model": "evil/x"}}}),
            ("judge", "judges", {"serve": {"model": "evil/x"}}),
            ("judging reward", "judges", {"reward": {"model": "evil/x"}}),
            ("benchmark", "benchmarks", {"kind": "AlpacaEval2", "bundle": "evil/x"}),
        )
    },
    "another owner's evaluation prompts": (
        {"prompts": {"dataset": "org/prompts", "evaluation": {"dataset": "evil/prompts"}}},
        "prompts",
    ),
}


@pytest.mark.parametrize("changes", PASS.values(), ids=PASS.keys())
def test_passes(changes: dict[str, Any]) -> None:
    assert judged(admitted(**changes)) == []


@pytest.mark.parametrize(("changes", "field"), FAIL.values(), ids=FAIL.keys())
def test_is_refused_with_field_and_remedy(changes: dict[str, Any], field: str) -> None:
    (message,) = judged(admitted(**changes))
    assert field in message
    assert any(remedy in message for remedy in ("Name an image", "Choose", "Use one", "Change or", "Remove it"))


def test_what_was_admitted_earlier_may_still_be_labelled() -> None:
    old = admitted(target={"model": "evil/target"})
    labelled = {**old, "metadata": {**old["metadata"], "labels": {"a": "b"}}}
    assert judged(labelled, old) == []
    assert len(judged({**labelled, "spec": {**old["spec"], "suspend": True}}, old)) == 1


def test_the_binding_denies_where_the_operator_watches() -> None:
    binding = one(render(LIMITS), "ValidatingAdmissionPolicyBinding", NAME)
    assert binding["spec"] == {"policyName": NAME, "validationActions": ["Deny"]}
    objects = render(LIMITS, 'mode="namespaced"', 'watchNamespace="team-a"')
    spec = one(objects, "ValidatingAdmissionPolicyBinding", NAME)["spec"]
    assert spec["matchResources"]["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "team-a"}}


def test_lists_that_are_empty_limit_nothing() -> None:
    objects = render('admissionPolicy={"enabled":true,"claimNames":["artifacts"]}')
    assert len(one(objects, "ValidatingAdmissionPolicy", NAME)["spec"]["validations"]) == 1


def test_a_policy_that_limits_nothing_and_an_old_cluster_are_refused_with_the_remedy() -> None:
    assert "Set imageRegistries" in refused('admissionPolicy={"enabled":true}')
    assert "Kubernetes 1.30" in refused(LIMITS, flags=("--kube-version", "1.29.4"))
    assert "imageRegistries" in refused("""admissionPolicy={"enabled":true,"imageRegistries":["a'] + ['"]}""")
