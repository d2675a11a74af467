"""Admission policies and their bindings: matching of writes, and actions."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from devcluster.api_rig import ADMIN, Rig, widget

Run = Callable[[Callable[[Rig], Awaitable[None]]], None]
BASE = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolic"
WIDGETS = "/apis/test.example/v1/namespaces/ns/widgets"
MERGE = "application/merge-patch+json"
RULE = {
    "apiGroups": ["test.example"],
    "apiVersions": ["*"],
    "operations": ["CREATE", "UPDATE"],
    "resources": ["widgets"],
}
SMALL = {"expression": "object.spec.max < 50", "message": "too large"}


def policy(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "p"},
        "spec": {"matchConstraints": {"resourceRules": [RULE]}, "validations": [SMALL], **spec},
    }


def binding(*actions: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "b"},
        "spec": {"policyName": "p", "validationActions": list(actions or ("Deny",)), **spec},
    }


async def bind(rig: Rig, policy_spec: dict[str, Any] | None = None, bound: dict[str, Any] | None = None) -> None:
    for path, body in ((f"{BASE}ies", policy(**(policy_spec or {}))), (f"{BASE}ybindings", bound or binding())):
        status, found = await rig.request("POST", path, body)
        assert status == 201, found


async def answer(
    rig: Rig, method: str, path: str, body: Any, content: str = "application/json"
) -> tuple[int, Any, str]:
    headers = {"Authorization": f"Bearer {ADMIN}", "Content-Type": content}
    async with rig.http.request(method, path, data=json.dumps(body), headers=headers) as response:
        return response.status, await response.json(), response.headers.get("Warning", "")


DENIALS: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "the message": ({}, 422, "Invalid", "too large"),
    "the reason": ({"validations": [{**SMALL, "reason": "Forbidden"}]}, 403, "Forbidden", "too large"),
    "no message": (
        {"validations": [{"expression": "object.spec.max < 50"}]},
        422, "Invalid", "failed expression: object.spec.max < 50",
    ),
    "a made message": (
        {"validations": [{**SMALL, "messageExpression": "'at most 49, not ' + string(object.spec.max)"}]},
        422, "Invalid", "at most 49, not 99",
    ),
    "a variable": (
        {
            "variables": [{"name": "most", "expression": "49"}],
            "validations": [{**SMALL, "expression": "object.spec.max <= variables.most"}],
        },
        422, "Invalid", "too large",
    ),
    "an expression without a value": (
        {"validations": [{"expression": "object.spec.none == 1"}]},
        422, "Invalid", "expression 'object.spec.none == 1' resulted in error: no such key: none",
    ),
    "who asks": (
        {"validations": [{"expression": "request.userInfo.username != 'admin'", "message": "not you"}]},
        422, "Invalid", "not you",
    ),
    "the namespace": (
        {"validations": [{"expression": "namespaceObject.metadata.name != 'ns'", "message": "not here"}]},
        422, "Invalid", "not here",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "code", "reason", "why"), DENIALS.values(), ids=DENIALS.keys())
@pytest.mark.parametrize("path", [WIDGETS, f"{WIDGETS}?dryRun=All"], ids=["really", "as a dry run"])
def test_a_bound_policy_denies(run: Run, path: str, spec: dict[str, Any], code: int, reason: str, why: str) -> None:
    async def scenario(rig: Rig) -> None:
        await bind(rig, spec)

        status, body, _ = await answer(rig, "POST", path, widget("w", max=99))

        message = f"ValidatingAdmissionPolicy 'p' with binding 'b' denied request: {why}"
        assert (status, body["reason"]) == (code, reason)
        assert body["message"] == f'widgets.test.example "w" is forbidden: {message}'
        assert body["details"]["causes"] == [{"message": message}]

    run(scenario)


PASSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "what is valid": ({"validations": [{"expression": "object.spec.max == 99"}]}, binding()),
    "another operation": ({"matchConstraints": {"resourceRules": [{**RULE, "operations": ["DELETE"]}]}}, binding()),
    "another resource": ({"matchConstraints": {"resourceRules": [{**RULE, "resources": ["pods"]}]}}, binding()),
    "a subresource": ({"matchConstraints": {"resourceRules": [{**RULE, "resources": ["widgets/status"]}]}}, binding()),
    "another scope": ({"matchConstraints": {"resourceRules": [{**RULE, "scope": "Cluster"}]}}, binding()),
    "other names": ({"matchConstraints": {"resourceRules": [{**RULE, "resourceNames": ["x"]}]}}, binding()),
    "what is excluded": (
        {"matchConstraints": {"resourceRules": [RULE], "excludeResourceRules": [RULE]}}, binding(),
    ),
    "other labels": (
        {"matchConstraints": {"resourceRules": [RULE], "objectSelector": {"matchLabels": {"a": "b"}}}}, binding(),
    ),
    "another namespace": ({}, binding(matchResources={"namespaceSelector": {"matchLabels": {"a": "b"}}})),
    "a condition that does not hold": (
        {"matchConditions": [{"name": "c", "expression": "object.metadata.name != 'w'"}]}, binding(),
    ),
    "an error that is ignored": (
        {"failurePolicy": "Ignore", "validations": [{"expression": "object.spec.none == 1"}]}, binding(),
    ),
    "an audit": ({}, binding("Audit")),
    "a policy that is bound elsewhere": ({}, binding(policyName="other")),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "bound"), PASSES.values(), ids=PASSES.keys())
def test_a_policy_lets_pass(run: Run, spec: dict[str, Any], bound: dict[str, Any]) -> None:
    async def scenario(rig: Rig) -> None:
        await bind(rig, spec, bound)
        assert (await answer(rig, "POST", WIDGETS, widget("w", max=99)))[0] == 201

    run(scenario)


def test_a_policy_warns_and_concerns_updates_and_deletions(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        rules = [{**RULE, "operations": ["UPDATE", "DELETE"]}]
        kept = {"expression": "request.operation != 'DELETE' || oldObject.spec.min > 0", "message": "kept"}
        spec = {"matchConstraints": {"resourceRules": rules}, "validations": [kept]}
        assert (await answer(rig, "POST", WIDGETS, widget("w")))[0] == 201
        await bind(rig, spec)
        status, body, _ = await answer(rig, "DELETE", f"{WIDGETS}/w", {})
        assert (status, body["message"].rpartition(": ")[2]) == (422, "kept")
        assert (await answer(rig, "PATCH", f"{WIDGETS}/w", {"spec": {"min": 1}}, MERGE))[0] == 200
        assert (await answer(rig, "DELETE", f"{WIDGETS}/w", {}))[0] == 200

    run(scenario)


def test_a_warning_goes_with_the_answer(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        await bind(rig, None, binding("Warn", "Audit"))
        status, _, warning = await answer(rig, "POST", WIDGETS, widget("w", max=99))
        why = "Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': too large"
        assert (status, warning) == (201, f'299 - "{why}"')

    run(scenario)


def test_a_policy_reads_its_parameters(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        spec = {
            "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "validations": [{"expression": "object.spec.max <= int(params.data.most)", "message": "too large"}],
        }
        await bind(rig, spec, binding(paramRef={"name": "limits", "parameterNotFoundAction": "Deny"}))
        status, body, _ = await answer(rig, "POST", WIDGETS, widget("w", max=5))
        assert (status, "no params found" in body["message"]) == (422, True)
        limits = {"metadata": {"name": "limits"}, "data": {"most": "7"}}
        assert (await answer(rig, "POST", "/api/v1/namespaces/ns/configmaps", limits))[0] == 201
        assert (await answer(rig, "POST", WIDGETS, widget("w", max=5)))[0] == 201
        assert (await answer(rig, "POST", WIDGETS, widget("v", max=9)))[0] == 422

    run(scenario)


INVALID: dict[str, tuple[str, dict[str, Any], list[tuple[str, str]]]] = {
    "syntax": (
        "ies", policy(validations=[{"expression": "object.("}]),
        [("FieldValueInvalid", "spec.validations[0].expression")],
    ),
    "an unknown name": (
        "ies", policy(validations=[{"expression": "objekt.spec == 1"}]),
        [("FieldValueInvalid", "spec.validations[0].expression")],
    ),
    "parameters without a kind": (
        "ies", policy(validations=[{"expression": "params.data.a == 'b'"}]),
        [("FieldValueInvalid", "spec.validations[0].expression")],
    ),
    "nothing to validate": (
        "ies", policy(validations=[]),
        [("FieldValueRequired", "spec.validations"), ("FieldValueRequired", "spec.auditAnnotations")],
    ),
    "no rule": (
        "ies", policy(matchConstraints={}), [("FieldValueRequired", "spec.matchConstraints.resourceRules")],
    ),
    "an unknown reason": (
        "ies", policy(validations=[{**SMALL, "reason": "Why"}]),
        [("FieldValueNotSupported", "spec.validations[0].reason")],
    ),
    "no action": ("ybindings", binding() | {"spec": {"policyName": "p"}},
                  [("FieldValueRequired", "spec.validationActions")]),
    "Deny and Warn": ("ybindings", binding("Deny", "Warn"), [("FieldValueInvalid", "spec.validationActions")]),
    "an unknown action": ("ybindings", binding("Shout"), [("FieldValueNotSupported", "spec.validationActions[0]")]),
    "an action twice": ("ybindings", binding("Deny", "Deny"), [("FieldValueDuplicate", "spec.validationActions[1]")]),
    "no policy": ("ybindings", binding(policyName=""), [("FieldValueRequired", "spec.policyName")]),
}  # fmt: skip


@pytest.mark.parametrize(("plural", "body", "causes"), INVALID.values(), ids=INVALID.keys())
def test_a_policy_or_binding_that_cannot_work_is_refused(
    run: Run, plural: str, body: dict[str, Any], causes: list[tuple[str, str]]
) -> None:
    async def scenario(rig: Rig) -> None:
        status, found = await rig.request("POST", f"{BASE}{plural}", body)
        assert status == 422, found
        assert [(cause["reason"], cause["field"]) for cause in found["details"]["causes"]] == causes

    run(scenario)
