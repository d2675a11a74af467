"""Eviction subresource: deletes a pod unless a disruption budget forbids it."""

from __future__ import annotations

from typing import Any

from wrpo_devcluster.apiserver.admission.policies import Write
from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.apis.options import check_delete
from wrpo_devcluster.apiserver.apis.request import Context
from wrpo_devcluster.apiserver.registry.deletion import DeleteOptions, Deleter
from wrpo_devcluster.apiserver.registry.pipeline import RequestPipeline
from wrpo_devcluster.apiserver.schema.codec import copy_json
from wrpo_devcluster.apiserver.schema.kinds import Kind, Target
from wrpo_devcluster.apiserver.storage.selectors import from_label_selector
from wrpo_devcluster.client import ApiError, JsonObject

BUDGETS = "policy/poddisruptionbudgets"
_REFUSED = "Cannot evict pod as it would violate the pod's disruption budget."
_RETRY_S = 10
_NOT_PROTECTED = frozenset({"Pending", "Succeeded", "Failed"})


def evict(deleter: Deleter, target: Target, body: Any, context: Context) -> JsonObject:
    """Carry out a policy/v1 Eviction."""
    pipeline, kind = deleter.pipeline, target.kind
    _check_body(body, target.name)
    given = body.get("deleteOptions") or {}
    check_delete(given)
    context.dry_run = context.dry_run or bool(given.get("dryRun"))
    pod = pipeline.get(kind, target.namespace, target.name)
    pipeline.admission.policies.check(Write(kind, pod, None, "eviction"), context)
    if _is_protected(pod):
        _use_budget(pipeline, pod, context)
    if not context.dry_run and not pod["metadata"].get("deletionTimestamp"):
        pod = _mark(pipeline, kind, pod)
    deleter.delete(kind, target.namespace, target.name, DeleteOptions.parse(given), context)
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def _check_body(body: Any, name: str) -> None:
    if not isinstance(body, dict) or body.get("kind", "Eviction") != "Eviction":
        raise errors.bad_request("the object provided is unrecognized (must be of type Eviction)")
    given = (body.get("metadata") or {}).get("name", "")
    if given != name:
        raise errors.bad_request("name in URL does not match name in Eviction object")


def _is_protected(pod: JsonObject) -> bool:
    """Return whether a budget protects the pod. It must run and not be terminating."""
    phase = (pod.get("status") or {}).get("phase")
    return phase not in _NOT_PROTECTED and not pod["metadata"].get("deletionTimestamp")


def _use_budget(pipeline: RequestPipeline, pod: JsonObject, context: Context) -> None:
    """Use one disruption of the pod's budget; refuse if none remains."""
    meta = pod["metadata"]
    budgets = [
        record.obj
        for record in pipeline.store.list(BUDGETS, meta["namespace"])
        if record.obj["spec"].get("selector") is not None
        and all(part.matches(meta.get("labels") or {}) for part in from_label_selector(record.obj["spec"]["selector"]))
    ]
    if len(budgets) > 1:
        why = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
        raise errors.error(500, "InternalError", f"Internal error occurred: {why}", {"causes": [{"message": why}]})
    if not budgets or _may_go_unhealthy(budgets[0], pod):
        return
    budget = budgets[0]
    _check_budget(budget)
    if not context.dry_run:
        status = copy_json(budget["status"])
        status["disruptionsAllowed"] -= 1
        status.setdefault("disruptedPods", {})[meta["name"]] = pipeline.now()
        kind = pipeline.registry.find("policy", "v1", "poddisruptionbudgets")
        assert kind is not None
        new = {**budget, "metadata": dict(budget["metadata"]), "status": status}
        pipeline.store_unchecked(kind, new, budget)


def _may_go_unhealthy(budget: JsonObject, pod: JsonObject) -> bool:
    """Return whether the pod is not ready and the budget permits the eviction of such pods."""
    conditions = {entry.get("type"): entry.get("status") for entry in pod["status"].get("conditions") or ()}
    if conditions.get("Ready") == "True":
        return False
    status = budget.get("status") or {}
    desired = status.get("desiredHealthy", 0)
    if budget["spec"].get("unhealthyPodEvictionPolicy") == "AlwaysAllow":
        return True
    return bool(desired) and bool(status.get("currentHealthy", 0) >= desired)


def _check_budget(budget: JsonObject) -> None:
    name, status = budget["metadata"]["name"], budget.get("status") or {}
    if status.get("observedGeneration", 0) < budget["metadata"].get("generation", 1):
        raise _refusal(f"The disruption budget {name} is still being processed by the server.", _RETRY_S)
    if status.get("disruptionsAllowed", 0) <= 0:
        needed, found = status.get("desiredHealthy", 0), status.get("currentHealthy", 0)
        raise _refusal(f"The disruption budget {name} needs {needed} healthy pods and has {found} currently", 0)


def _refusal(cause: str, retry_s: int) -> ApiError:
    details: JsonObject = {"causes": [{"reason": "DisruptionBudget", "message": cause}]}
    if retry_s:
        details["retryAfterSeconds"] = retry_s
    return errors.error(429, "TooManyRequests", _REFUSED, details)


def _mark(pipeline: RequestPipeline, kind: Kind, pod: JsonObject) -> JsonObject:
    """Set the pod's condition for its eviction."""
    marked: JsonObject = copy_json(pod)
    condition = {
        "type": "DisruptionTarget",
        "status": "True",
        "lastProbeTime": None,
        "lastTransitionTime": pipeline.now(),
        "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting",
    }
    others = [c for c in marked["status"].get("conditions") or () if c.get("type") != "DisruptionTarget"]
    marked["status"]["conditions"] = [*others, condition]
    return pipeline.store_unchecked(kind, marked, pod)
