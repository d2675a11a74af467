"""Required state before some requests of more.json, and the values of this run in these requests.

The record leaves out every second request of its run; the steps here replace those that created state.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

from devcluster.transcript.replay import APPLY, MERGE, Amend, Entry, Replay, Step

GROUP = "/apis/held.example/v1/namespaces/held/trials"
CORE, QUOTA_CORE = "/api/v1/namespaces/held", "/api/v1/namespaces/held-q"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
RBAC = "/apis/rbac.authorization.k8s.io/v1/namespaces/held"
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
LONG_AGO = "2024-01-01T00:00:00Z"


def trial(name: str, metadata: dict[str, Any] | None = None, **spec: Any) -> Entry:
    """Return a Trial as the recorder wrote it."""
    meta = {"name": name, **(metadata or {})}
    return {"apiVersion": "held.example/v1", "kind": "Trial", "metadata": meta, "spec": spec}


def config_map(name: str, **metadata: Any) -> Entry:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **metadata}, "data": {"k": "v"}}


def pod(name: str, **resources: Any) -> Entry:
    container = {"name": "c", "image": "img", **({"resources": resources} if resources else {})}
    spec = {"automountServiceAccountToken": False, "terminationGracePeriodSeconds": 0, "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec}


def job(**resources: Any) -> Entry:
    container = {"name": "c", "image": "img", **({"resources": resources} if resources else {})}
    pod_spec = {"restartPolicy": "Never", "automountServiceAccountToken": False, "containers": [container]}
    return {"template": {"spec": pod_spec}, "suspend": True}


def trials_crd(run: Replay) -> Entry:
    """Return the CRD of the run, which is that of the dry run with other names."""
    text = json.dumps(run.entries["crd: dry run"]["request"]["body"])
    return json.loads(text.replace("dry", "trial").replace("Dry", "Trial").replace("drys", "trials"))


async def register(run: Replay) -> None:
    await run.make("POST", CRDS, trials_crd(run))
    await run.until(GROUP, lambda status, _: status == 200)


async def trial_that_waits_for_a_finalizer(run: Replay) -> None:
    await run.make("POST", GROUP, trial("c", {"finalizers": ["nodomain"]}))
    await run.make("DELETE", f"{GROUP}/c")


async def two_more_trials(run: Replay) -> None:
    await run.make("POST", GROUP, trial("yam", color="green"))
    await run.make("POST", GROUP, trial("b2", color="blue", port="http"))
    await run.make("POST", GROUP, trial("n" * 253))


async def scaled(run: Replay) -> None:
    status = {"status": {"replicas": 2, "selector": "a=b"}}
    await run.make("PATCH", f"{GROUP}/a/status", status, content_type=MERGE)
    await run.make("PATCH", f"{GROUP}/a", {"spec": {"replicas": 2}}, content_type=MERGE)


async def scaled_again(run: Replay) -> None:
    found = run.kept["scale"]
    run.kept["stale"] = found["metadata"]["resourceVersion"]
    await run.make("PUT", f"{GROUP}/a/scale", {**found, "spec": {"replicas": 5}})


async def emptied_application(run: Replay) -> None:
    await run.make("PATCH", f"{GROUP}/s", trial("s"), content_type=APPLY, params={"fieldManager": "one"})


async def other_parts(run: Replay) -> None:
    for manager, spec in (
        ("one", {"tags": ["a"], "parts": [{"name": "p", "size": 1}], "steps": ["1"]}),
        ("two", {"parts": [{"name": "p", "kind": "z", "size": 2}]}),
    ):
        body = trial("s", **spec)
        await run.make("PATCH", f"{GROUP}/s", body, content_type=APPLY, params={"fieldManager": manager})


async def nobody_owns_anything(run: Replay) -> None:
    await run.make("PATCH", f"{GROUP}/s", {"metadata": {"managedFields": [{}]}}, content_type=MERGE)


async def owned_config_map(run: Replay) -> None:
    owner = {"apiVersion": "v1", "kind": "Namespace", "name": "held", "uid": "u1"}
    body = config_map("own", finalizers=["held.example/f"], ownerReferences=[owner])
    await run.make("PATCH", f"{CORE}/configmaps/own", body, content_type=APPLY, params={"fieldManager": "one"})
    await run.until(f"{CORE}/configmaps/own", lambda _, found: found["metadata"].get("deletionTimestamp"))


async def one_more_trial(run: Replay) -> None:
    await run.make("POST", GROUP, trial("l2", color="blue"))


async def annotated(run: Replay) -> None:
    await run.make("PATCH", f"{GROUP}/a", {"metadata": {"annotations": {"a/b": "1"}}}, content_type=MERGE)


async def gone_between_pages(run: Replay) -> None:
    await run.make("DELETE", f"{GROUP}/l1")


async def painted(run: Replay) -> None:
    found = await run.make("GET", GROUP, params={"limit": 1})
    run.kept["before paint"] = found["metadata"]["resourceVersion"]
    await run.make("PATCH", f"{GROUP}/l2", {"spec": {"color": "red"}}, content_type=MERGE)


async def dependent(run: Replay) -> None:
    owner = run.kept["owner"]["metadata"]
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner1", "uid": owner["uid"]}
    await run.make("POST", f"{CORE}/configmaps", config_map("dep1", ownerReferences=[reference]))


async def orphaned(run: Replay) -> None:
    await run.make("DELETE", f"{CORE}/configmaps/owner1", {"propagationPolicy": "Orphan"})
    await run.until(f"{CORE}/configmaps/owner1", lambda status, _: status == 404)


async def two_more_config_maps(run: Replay) -> None:
    await run.make("POST", f"{CORE}/configmaps", config_map("m1", labels={"set": "m"}))
    body = config_map("m3", labels={"set": "m"}, finalizers=["held.example/f"])
    await run.make("POST", f"{CORE}/configmaps", body)


async def two_deleted(run: Replay) -> None:
    params = {"labelSelector": "set=m", "fieldSelector": "metadata.name!=m2"}
    await run.make("DELETE", f"{CORE}/configmaps", params=params)


async def events(run: Replay) -> None:
    body = {**run.entries["event of another namespace"]["request"]["body"], "metadata": {"name": "e1"}}
    body |= {"firstTimestamp": LONG_AGO, "lastTimestamp": LONG_AGO}
    body["involvedObject"] = {"kind": "Trial", "name": "a", "namespace": "held"}
    await run.make("POST", f"{CORE}/events", body)
    await run.make("PATCH", f"{CORE}/events/e1", {"count": 2}, content_type=MERGE)


async def event_of_the_other_group(run: Replay) -> None:
    body = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": "e5"},
        "eventTime": LONG_AGO.replace("Z", ".000000Z"),
        "reportingController": "x.y/z",
        "reportingInstance": "i",
        "action": "A",
        "reason": "R",
        "type": "Normal",
        "regarding": {"kind": "Trial", "name": "a", "namespace": "held"},
        "series": {"count": 3, "lastObservedTime": LONG_AGO.replace("Z", ".000000Z")},
    }
    await run.make("POST", "/apis/events.k8s.io/v1/namespaces/held/events", body)


async def running_pod(run: Replay) -> None:
    await run.until(f"{CORE}/serviceaccounts/default", lambda status, _: status == 200)
    await run.make("POST", f"{CORE}/pods", pod("run"))


async def applied_job(run: Replay) -> None:
    path = "/apis/batch/v1/namespaces/held/jobs/jb-apply"
    for resources in ({}, {"limits": {"cpu": "1"}}):
        body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "jb-apply"}, "spec": job(**resources)}
        await run.make("PATCH", path, body, content_type=APPLY, params={"fieldManager": "one"})
        await run.until(path, lambda _, found: (found.get("status") or {}).get("conditions"))


async def strange_status(run: Replay) -> None:
    path = "/apis/batch/v1/namespaces/held/jobs/jb-apply/status"
    await run.make("PATCH", path, {"status": {"succeeded": 7}}, content_type=MERGE)


async def second_namespace(run: Replay) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "baseline"}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "held-q", "labels": labels}}
    await run.make("POST", "/api/v1/namespaces", body)
    await run.until(f"{QUOTA_CORE}/serviceaccounts/default", lambda status, _: status == 200)


async def quota_in_force(run: Replay) -> None:
    await run.until(f"{QUOTA_CORE}/resourcequotas/q", lambda _, found: (found.get("status") or {}).get("used"))


async def quota_used_up(run: Replay) -> None:
    await run.make("POST", f"{QUOTA_CORE}/pods", pod("q1", requests={"cpu": "500m"}))
    body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "quota1"}, "spec": job()}
    await run.make("POST", "/apis/batch/v1/namespaces/held-q/jobs", body)
    await run.make("POST", GROUP.replace("held/", "held-q/"), trial("q1"))


async def limit_range(run: Replay) -> None:
    limits = [{"type": "Container", "max": {"cpu": "1"}}]
    body = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l"}, "spec": {"limits": limits}}
    await run.make("POST", f"{QUOTA_CORE}/limitranges", body)


async def policy_that_denies(run: Replay) -> None:
    body = json.loads(json.dumps(run.entries["policy that warns"]["request"]["body"]))
    body["metadata"]["name"] = "held-deny"
    expression = "!has(object.spec.color) || object.spec.color != 'black'"
    body["spec"]["validations"] = [{"expression": expression, "message": "no black", "reason": "Forbidden"}]
    await run.make("POST", POLICIES, body)


async def policies_in_force(run: Replay) -> None:
    body = run.entries["binding"]["request"]["body"]
    spec = {"policyName": "held-warn", "validationActions": ["Warn"]}
    await run.make(
        "POST",
        f"{POLICIES.replace('policies', 'policybindings')}",
        {**body, "metadata": {"name": "held-warn"}, "spec": spec},
    )
    await _policies_work(run)


async def white_trial(run: Replay) -> None:
    await run.make("POST", GROUP, trial("v2", color="white"))


async def worker(run: Replay) -> None:
    body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "w"}}
    await run.make("POST", f"{CORE}/serviceaccounts", body)
    ask = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    found = await run.make("POST", f"{CORE}/serviceaccounts/w/token", ask)
    run.kept["worker"] = {"Authorization": f"Bearer {found['status']['token']}"}


async def role_binding(run: Replay) -> None:
    for plural, kind, content in (
        ("roles", "Role", {"rules": []}),
        (
            "rolebindings",
            "RoleBinding",
            {
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
                "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "held"}],
            },
        ),
    ):
        name = "r" if kind == "Role" else "rb"
        body = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": name}, **content}
        await run.make("POST", f"{RBAC}/{plural}", body)


async def labelled(run: Replay) -> None:
    await run.make("PATCH", f"{GROUP}/a", {"metadata": {"labels": {"x": "1"}}}, content_type=MERGE)


async def deletion_in_progress(run: Replay) -> None:
    def in_progress(_: int, found: Any) -> bool:
        conditions = {entry["type"]: entry["reason"] for entry in found["status"]["conditions"]}
        return conditions.get("Terminating") == "InstanceDeletionInProgress"

    await run.until(f"{CRDS}/trials.held.example", in_progress)


async def namespace_terminates(run: Replay) -> None:
    await run.make("DELETE", "/api/v1/namespaces/held")


async def _policies_work(run: Replay) -> None:
    """Wait until policies are in force: a real server reads them periodically."""
    body = trial("policy-probe", color="black")
    for _ in range(200):
        status, _found, _headers = await run.send("POST", GROUP, body, params={"dryRun": "All"})
        if status == 403:
            return
    raise AssertionError("the policy is not in force")


BEFORE: dict[str, Step] = {
    "crd table": register,
    "bad finalizer name": trial_that_waits_for_a_finalizer,
    "GET as YAML": two_more_trials,
    "scale": scaled,
    "scale PUT, stale": scaled_again,
    "apply": emptied_application,
    "edit, then apply conflicts with it": other_parts,
    "apply after that": nobody_owns_anything,
    "owner references by two managers": owned_config_map,
    "make l3": one_more_trial,
    "selectable field !=": annotated,
    "the next page is of the same moment": gone_between_pages,
    "paint it back": painted,
    "dangling dependent": dependent,
    "orphan has no owner": orphaned,
    "make m2": two_more_config_maps,
    "what is left": two_deleted,
    "events by reason and type": events,
    "event table": event_of_the_other_group,
    "pod spec is immutable": running_pod,
    "job: apply again, other image": applied_job,
    "job: orphaning delete": strange_status,
    "quota": second_namespace,
    "pod without a request under a quota": quota_in_force,
    "pod above": quota_used_up,
    "limit range refuses": limit_range,
    "binding": policy_that_denies,
    "denied by policy": policies_in_force,
    "denied update": white_trial,
    "token: too short": worker,
    "roleRef changed": role_binding,
    "another field of it": labelled,
    "crd gone": deletion_in_progress,
    "apply in a terminating namespace": namespace_terminates,
}
"""Steps before an entry, by its name."""


def _body(change: Callable[[Replay, Any], Any]) -> Amend:
    return lambda run, request: {**request, "body": change(run, request["body"])}


def _params(change: Callable[[Replay], dict[str, Any]]) -> Amend:
    return lambda run, request: {**request, "params": {**request["params"], **change(run)}}


def _as_worker(run: Replay, request: Entry) -> Entry:
    return {**request, "headers": run.kept["worker"]}


def _timed(_run: Replay, body: Any) -> Any:
    return json.loads(json.dumps(body).replace("<time>", LONG_AGO.replace("Z", ".000000Z")))


def _listed(run: Replay) -> str:
    return str(run.kept["limit 1 of 3"]["metadata"]["resourceVersion"])


_OTHER_UID = "00000000-0000-0000-0000-000000000001"
_LONG_VALUE = {"annotations": {"a/b": "x" * 270_000}}
_PAST_THE_END = json.dumps({"v": "meta.k8s.io/v1", "rv": -1, "start": "zz\u0000"}).encode()
AMEND: dict[str, Amend] = {
    "minimal": _body(lambda _, body: json.loads(json.dumps(body).replace("<time>", LONG_AGO))),
    "annotations above 256 KiB": _body(lambda *_: trial("c", _LONG_VALUE)),
    "body of 3.5 MB": _body(lambda *_: trial("c", color="x" * 3_500_000)),
    "PUT with another uid": _body(
        lambda run, body: {
            **_timed(run, body),
            "metadata": {**run.kept["get"]["metadata"], "uid": _OTHER_UID},
        }
    ),
    "scale PUT, stale": _body(
        lambda run, body: {
            **body,
            "metadata": {**run.kept["scale"]["metadata"], "resourceVersion": run.kept["stale"]},
        }
    ),
    "apply with a uid, missing object": _body(lambda _, body: body.replace("<uid>", _OTHER_UID)),
    "the next page is of the same moment": _params(
        lambda run: {"continue": run.kept["limit 1 of 3"]["metadata"]["continue"]}
    ),
    "continue from a compacted moment": _params(
        lambda _: {"continue": base64.urlsafe_b64encode(_PAST_THE_END).decode().rstrip("=")}
    ),
    "list at exactly": _params(
        lambda run: {"resourceVersion": run.kept["continue from a compacted moment"]["metadata"]["resourceVersion"]}
    ),
    "match of a bad kind": _params(lambda run: {"resourceVersion": _listed(run)}),
    "not older than the future": _params(lambda run: {"resourceVersion": str(int(_listed(run)) + 100_000_000)}),
    "watch by name !=": _params(lambda run: {"resourceVersion": run.kept["before paint"], "timeoutSeconds": 1}),
    "watch of metadata only": _params(lambda run: {"resourceVersion": run.kept["before paint"], "timeoutSeconds": 1}),
    "watch with a match alone": _params(lambda run: {"resourceVersion": run.kept["before paint"]}),
    "dangling dependent": _body(lambda _, body: json.loads(json.dumps(body).replace("<uid>", _OTHER_UID))),
    "configmap above 1 MiB": _body(lambda *_: {**config_map("bk"), "data": {"k": "x" * 1_100_000}}),
    "event of another namespace": _body(_timed),
    "event with an eventTime and no controller": _body(_timed),
    "who am I": _as_worker,
    "rules of mine": _as_worker,
    "patch status forbidden": _as_worker,
    "role that grants more than one has": _as_worker,
    "impersonated review": lambda _, request: {
        **request,
        "headers": {"Impersonate-User": "jane", "Impersonate-Group": "dev"},
    },
    "crd narrowed": _body(
        lambda run, body: {
            **body,
            "metadata": {
                **body["metadata"],
                "resourceVersion": run.kept["crd table"]["rows"][0]["object"]["metadata"]["resourceVersion"],
            },
        }
    ),
}
"""Values of this run for the record's placeholders, by entry."""
