# ruff: noqa: PGH004
# ruff: noqa
# fmt: off
"""Record what a Kubernetes API server answers to a fixed list of requests, normalised, as JSON.

usage: record.py OUT.json   (environment: KUBE_URL, KUBE_CA, and KUBE_CERT+KUBE_KEY or KUBE_TOKEN)
The list is one story: later requests depend on earlier ones. Every entry: name, request, status, selected headers, body.
Run it against two servers and compare the files with compare.py.
It stays as it was when the real server was recorded, but for its types, so that records stay comparable; only the two long waits
are taken from the environment (RECORD_GC_WAIT_S, RECORD_JOBS_WAIT_S), because they measure the real server's pace, not answers.
"""
import json, os, re, sys, time
from typing import Any
import requests

URL, CA = os.environ["KUBE_URL"], os.environ.get("KUBE_CA", True)
S = requests.Session(); S.verify = CA; S.trust_env = False
if "KUBE_CERT" in os.environ: S.cert = (os.environ["KUBE_CERT"], os.environ["KUBE_KEY"])
TOKEN = os.environ.get("KUBE_TOKEN")
MERGE, JSONP, SMP, APPLY = (f"application/{x}" for x in ("merge-patch+json", "json-patch+json", "strategic-merge-patch+json", "apply-patch+yaml"))
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
OUT: list[Any] = []; uids: dict[str, Any] = {}; rvs: dict[str, Any] = {}

UID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
RANDOM = re.compile(r"\b(gen|kube-api-access|plain|policy|failing|indexed-\d|perindex-\d|bad-0|late|ttl|huge|pull|paused|j)-[bcdfghjklmnpqrstvwxz2456789]{5}\b")

def norm(x: Any, key: str | None = None) -> Any:
    """Replace what differs between runs: uids, resourceVersions, times, ages, addresses, tokens, random suffixes; order what has no order."""
    if isinstance(x, dict):
        return {UID.sub("<uid>", re.sub(r"10\.244\.\d+\.\d+", "<ip>", k)): norm(v, k) for k, v in x.items()}
    if isinstance(x, list):
        y = [norm(v, key) for v in x if not (isinstance(v, dict) and "openshift" in json.dumps(v.get("configMap", "")))]
        return sorted(y, key=lambda v: json.dumps([v.get("manager"), v.get("subresource"), v.get("operation")] if key == "managedFields" else v, sort_keys=True)) if key in ("managedFields", "items", "rows") and all(isinstance(v, dict) for v in y) else y
    if isinstance(x, str):
        if key in ("uid", "controller-uid", "batch.kubernetes.io/controller-uid"): return "<uid>"
        if key == "resourceVersion": return "<rv>" if x else ""
        if key == "token": return "<token>"
        if key == "continue" and x: return "<continue>"
        x = UID.sub("<uid>", x); x = RANDOM.sub(r"\1-<random>", x); x = re.sub(r"10\.244\.\d+\.\d+", "<ip>", x); x = re.sub(r"\.[0-9a-f]{16}$", ".<hash>", x); x = re.sub(r"\bgpu-\d\b", "<node>", x)
        if key == "cells": x = re.sub(r"^(\d+[smh])+$", "<age>", x)
        x = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "<time>", x)
        return x
    return x

def call(name: str, method: str, path: str, body: Any = None, ctype: str = "application/json", accept: str = "application/json", stream: bool | None = None, token: str | None = None, note: str | None = None, **params: Any) -> Any:
    h = {"Accept": accept}
    if body is not None: h["Content-Type"] = ctype
    if token or TOKEN: h["Authorization"] = f"Bearer {token or TOKEN}"
    data = body if isinstance(body, (str, bytes)) or body is None else json.dumps(body)
    kw: dict[str, Any] = dict(headers=h, data=data, params=params, timeout=30)
    sess = S
    if token:
        sess = requests.Session(); sess.verify = CA; sess.trust_env = False
    r = sess.request(method, URL + path, stream=bool(stream), **kw)
    if stream:
        got, t0 = [], time.time()
        for line in r.iter_lines():
            if line: got.append(json.loads(line))
        payload: Any = got
    else:
        try: payload = r.json()
        except ValueError: payload = r.text
    OUT.append({"name": name, **({"note": note} if note else {}), "request": {"method": method, "path": path, "params": norm(params), "contentType": ctype if body is not None else None, "accept": accept if accept != "application/json" else None, "body": norm(body)},
                "status": r.status_code, "headers": {k: r.headers[k] for k in ("Content-Type", "Warning", "Retry-After") if k in r.headers}, "body": norm(payload)})
    return payload

CRD = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "probes.wrpo.ai"}, "spec": {"group": "wrpo.ai", "scope": "Namespaced",
  "names": {"plural": "probes", "singular": "probe", "kind": "Probe", "listKind": "ProbeList", "shortNames": ["pb"], "categories": ["wrpo"]},
  "versions": [{"name": "v1alpha1", "served": True, "storage": True, "subresources": {"status": {}},
    "additionalPrinterColumns": [{"name": "Phase", "type": "string", "jsonPath": ".status.phase"}, {"name": "Progress", "type": "integer", "jsonPath": ".status.percent"}, {"name": "Objective", "type": "string", "jsonPath": ".spec.objective", "priority": 1}, {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}],
    "schema": {"openAPIV3Schema": {"type": "object", "required": ["spec"], "properties": {
      "spec": {"type": "object", "required": ["sources", "storage"], "x-kubernetes-validations": [{"rule": "!has(oldSelf.seed) || self.seed == oldSelf.seed", "message": "seed is immutable"}], "properties": {
        "objective": {"type": "string", "enum": ["WRPO-DPO", "DPO"], "default": "WRPO-DPO"}, "alpha": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.1}, "seed": {"type": "integer", "default": 42},
        "sources": {"type": "array", "minItems": 1, "maxItems": 3, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": {"type": "object", "required": ["name", "model"], "properties": {"name": {"type": "string", "maxLength": 20, "pattern": "^[a-z][a-z0-9-]*$"}, "model": {"type": "string", "minLength": 1}, "gpus": {"type": "integer", "minimum": 0, "default": 1}}}},
        "storage": {"type": "object", "x-kubernetes-validations": [{"rule": "has(self.s3) != has(self.volume)", "message": "exactly one of s3 and volume must be set"}], "properties": {"s3": {"type": "object", "required": ["uri"], "properties": {"uri": {"type": "string"}}}, "volume": {"type": "object", "required": ["claimName"], "properties": {"claimName": {"type": "string"}}}}},
        "podTemplate": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}, "note": {"type": "string", "nullable": True}}},
      "status": {"type": "object", "properties": {"phase": {"type": "string"}, "percent": {"type": "integer"}, "conditions": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"], "items": {"type": "object", "required": ["type", "status"], "properties": {"type": {"type": "string"}, "status": {"type": "string"}, "reason": {"type": "string"}, "message": {"type": "string"}}}}}}}}}}]}}
NS = "conf"
P = f"/apis/wrpo.ai/v1alpha1/namespaces/{NS}/probes"
def cr(name: str = "a", **spec: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"sources": [{"name": "one", "model": "m1"}], "storage": {"s3": {"uri": "s3://b/p"}}}
    base.update(spec); base = {k: v for k, v in base.items() if v is not ...}
    return {"apiVersion": "wrpo.ai/v1alpha1", "kind": "Probe", "metadata": {"name": name}, "spec": base}

def crds() -> None:
    call("create namespace", "POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NS}})
    call("create CRD", "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", CRD)
    for _ in range(100):
        d = S.get(URL + "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/probes.wrpo.ai", headers={"Authorization": f"Bearer {TOKEN}"} if TOKEN else {}).json()
        if any(c["type"] == "Established" and c["status"] == "True" for c in ((d.get("status") or {}).get("conditions") or [])): break
        time.sleep(0.1)
    time.sleep(1)
    call("CRD established", "GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/probes.wrpo.ai")
    bad = json.loads(json.dumps(CRD)); bad["metadata"]["name"] = "wrong.wrpo.ai"
    call("CRD with a wrong name", "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", bad)
    call("group discovery", "GET", "/apis/wrpo.ai"); call("version discovery", "GET", "/apis/wrpo.ai/v1alpha1")
    call("batch discovery", "GET", "/apis/batch/v1")
    call("unknown group", "GET", "/apis/nothing.example/v1"); call("unknown resource", "GET", f"/apis/wrpo.ai/v1alpha1/namespaces/{NS}/nothings")

def validation() -> None:
    call("create minimal: defaults, generation 1", "POST", P, cr())
    call("create duplicate", "POST", P, cr())
    call("unknown field is pruned with a warning", "POST", P, cr("warned", typo=1))
    call("unknown field, fieldValidation=Strict", "POST", P, cr("strict", typo=1), fieldValidation="Strict")
    call("unknown field, fieldValidation=Ignore", "POST", P, cr("ignored", typo=1), fieldValidation="Ignore")
    call("preserve-unknown subtree is kept", "POST", P, cr("kept", podTemplate={"spec": {"anything": [1, {"x": "y"}]}}))
    call("nullable null kept, non-nullable null dropped before defaulting", "POST", P, cr("nulls", note=None, objective=None))
    spec: Any
    for name, spec in {"wrong type": {"alpha": "much"}, "above maximum": {"alpha": 1.5}, "enum": {"objective": "PPO"}, "missing required": {"sources": ...}, "empty list": {"sources": []}, "too many items": {"sources": [{"name": f"s{i}", "model": "m"} for i in range(4)]},
                       "duplicate list-map key": {"sources": [{"name": "x", "model": "m"}, {"name": "x", "model": "n"}]}, "pattern": {"sources": [{"name": "Bad_Name", "model": "m"}]}, "too long": {"sources": [{"name": "a" * 21, "model": "m"}]}, "CEL: none of two": {"storage": {}}, "CEL: both of two": {"storage": {"s3": {"uri": "u"}, "volume": {"claimName": "c"}}},
                       "integer given as float": {"seed": 1.5}, "integer-valued float": {"seed": 7.0}, "two faults at once": {"alpha": 2, "objective": "X"}}.items():
        call(f"invalid: {name}", "POST", P, cr("bad", **spec))
    call("invalid object name", "POST", P, cr("Bad_Name")); call("no name", "POST", P, {**cr(), "metadata": {}})
    call("generateName", "POST", P, {**cr(), "metadata": {"generateName": "gen-"}}, note="name ends in five random characters")
    call("name in body differs from path on PUT", "PUT", P + "/a", cr("b")); call("wrong kind in body", "POST", P, {**cr("k"), "kind": "Other"}); call("wrong apiVersion in body", "POST", P, {**cr("k"), "apiVersion": "wrpo.ai/v1"})
    call("namespace in body differs from path", "POST", P, {**cr("k"), "metadata": {"name": "k", "namespace": "other"}})
    call("not JSON", "POST", P, "{not json"); call("empty body", "POST", P, ""); call("unsupported media type", "POST", P, "x", ctype="text/plain")
    call("get missing", "GET", P + "/none"); call("create in a missing namespace", "POST", P.replace(NS, "absent"), cr()); call("list in a missing namespace", "GET", P.replace(NS, "absent"))
    call("dry run", "POST", P, cr("dry"), dryRun="All"); call("dry run left nothing", "GET", P + "/dry"); call("method not allowed", "POST", P + "/a", cr())

def updates() -> None:
    a = call("get", "GET", P + "/a"); rv = a["metadata"]["resourceVersion"]
    call("PUT without resourceVersion", "PUT", P + "/a", cr("a", alpha=0.2))
    b = call("PUT with resourceVersion: generation 2", "PUT", P + "/a", {**cr("a", alpha=0.3), "metadata": {"name": "a", "resourceVersion": rv}})
    call("PUT with a stale resourceVersion", "PUT", P + "/a", {**cr("a", alpha=0.4), "metadata": {"name": "a", "resourceVersion": rv}})
    n1 = call("merge patch, no change", "PATCH", P + "/a", {"spec": {"alpha": b["spec"].get("alpha")}}, MERGE)
    OUT[-1]["same_resource_version"] = n1["metadata"]["resourceVersion"] == b["metadata"]["resourceVersion"]
    call("merge patch of metadata: generation unchanged", "PATCH", P + "/a", {"metadata": {"labels": {"t": "1"}, "annotations": {"n": "v"}}}, MERGE)
    call("merge patch of spec: generation + 1", "PATCH", P + "/a", {"spec": {"alpha": 0.5}}, MERGE)
    call("merge patch to null restores the default", "PATCH", P + "/a", {"spec": {"alpha": None}}, MERGE)
    call("merge patch with a stale resourceVersion", "PATCH", P + "/a", {"metadata": {"resourceVersion": rv}, "spec": {"alpha": 0.7}}, MERGE)
    call("transition rule", "PATCH", P + "/a", {"spec": {"seed": 7}}, MERGE)
    call("JSON patch", "PATCH", P + "/a", [{"op": "test", "path": "/spec/objective", "value": "WRPO-DPO"}, {"op": "replace", "path": "/spec/objective", "value": "DPO"}], JSONP)
    call("JSON patch, failed test", "PATCH", P + "/a", [{"op": "test", "path": "/spec/objective", "value": "nope"}], JSONP)
    call("JSON patch, failed resourceVersion test", "PATCH", P + "/a", [{"op": "test", "path": "/metadata/resourceVersion", "value": "1"}, {"op": "replace", "path": "/spec/alpha", "value": 0.9}], JSONP)
    call("JSON patch, missing path", "PATCH", P + "/a", [{"op": "remove", "path": "/spec/none"}], JSONP)
    call("strategic merge patch on a custom resource", "PATCH", P + "/a", {"spec": {"alpha": 0.1}}, SMP)
    call("patch missing object", "PATCH", P + "/none", {"spec": {}}, MERGE)
    call("status is ignored on the main endpoint", "PATCH", P + "/a", {"status": {"phase": "Main"}}, MERGE)
    call("spec and labels are ignored on /status; generation unchanged", "PATCH", P + "/a/status", {"metadata": {"labels": {"q": "1"}}, "spec": {"alpha": 0.99}, "status": {"phase": "Running", "percent": 40, "unknown": 1}}, MERGE)
    call("invalid status", "PATCH", P + "/a/status", {"status": {"percent": "x"}}, MERGE)
    call("get /status", "GET", P + "/a/status"); call("PUT /status without resourceVersion", "PUT", P + "/a/status", {**cr("a"), "status": {"phase": "X"}})

def apply_() -> None:
    body = lambda name, spec, **md: json.dumps({"apiVersion": "wrpo.ai/v1alpha1", "kind": "Probe", "metadata": {"name": name, **md}, "spec": spec})
    full = {"sources": [{"name": "one", "model": "m1"}], "storage": {"s3": {"uri": "u"}}, "alpha": 0.2}
    call("apply without fieldManager", "PATCH", P + "/s", body("s", full), APPLY)
    a = call("apply creates (201)", "PATCH", P + "/s", body("s", full), APPLY, fieldManager="one")
    b = call("apply again changes nothing", "PATCH", P + "/s", body("s", full), APPLY, fieldManager="one"); OUT[-1]["same_resource_version"] = a["metadata"]["resourceVersion"] == b["metadata"]["resourceVersion"]
    call("apply by another manager, same value: shared ownership", "PATCH", P + "/s", body("s", {"alpha": 0.2}), APPLY, fieldManager="two")
    call("apply by another manager, other value: conflict", "PATCH", P + "/s", body("s", {"alpha": 0.9}), APPLY, fieldManager="three")
    call("apply with force", "PATCH", P + "/s", body("s", {"alpha": 0.9}), APPLY, fieldManager="three", force="true")
    call("apply adds a list-map item beside another manager's", "PATCH", P + "/s", body("s", {"sources": [{"name": "two", "model": "m2"}]}), APPLY, fieldManager="two")
    call("apply dropping an owned item removes it", "PATCH", P + "/s", body("s", {}), APPLY, fieldManager="two")
    call("apply with managedFields set", "PATCH", P + "/s", body("s", full, managedFields=[{"manager": "x"}]), APPLY, fieldManager="one", force="true")
    call("apply unknown field, Strict", "PATCH", P + "/s", body("s", {**full, "typo": 1}), APPLY, fieldManager="one", force="true", fieldValidation="Strict")
    call("apply invalid", "PATCH", P + "/s", body("s", {**full, "alpha": 3}), APPLY, fieldManager="one", force="true")
    call("apply status", "PATCH", P + "/s/status", json.dumps({"apiVersion": "wrpo.ai/v1alpha1", "kind": "Probe", "metadata": {"name": "s"}, "status": {"phase": "P", "conditions": [{"type": "A", "status": "True"}]}}), APPLY, fieldManager="st")
    call("apply status of a missing object", "PATCH", P + "/zz/status", json.dumps({"apiVersion": "wrpo.ai/v1alpha1", "kind": "Probe", "metadata": {"name": "zz"}, "status": {"phase": "P"}}), APPLY, fieldManager="st")
    call("apply with a stale resourceVersion", "PATCH", P + "/s", body("s", full, resourceVersion="1"), APPLY, fieldManager="one", force="true")

def lists() -> None:
    for n in "xyz": call(f"create {n}", "POST", P, {**cr(n), "metadata": {"name": n, "labels": {"app": "l", "k": n}}})
    call("list by label", "GET", P, labelSelector="app=l"); call("list by set label", "GET", P, labelSelector="k in (x,y),app"); call("list by != label", "GET", P, labelSelector="app=l,k!=x"); call("bad label selector", "GET", P, labelSelector="app in")
    call("list by name field", "GET", P, fieldSelector="metadata.name=x"); call("unsupported field selector", "GET", P, fieldSelector="spec.alpha=1")
    c = call("list with limit 2", "GET", P, labelSelector="app=l", limit=2)
    continued: dict[str, Any] = {"continue": c["metadata"].get("continue", "")}
    bogus: dict[str, Any] = {"continue": "bogus"}
    call("list continued", "GET", P, labelSelector="app=l", limit=2, **continued); call("bad continue", "GET", P, limit=2, **bogus)
    call("table", "GET", P, labelSelector="app=l", accept=TABLE); call("table of one, with object", "GET", P + "/x", accept=TABLE, includeObject="Object"); call("table, no object", "GET", P, labelSelector="app=l", accept=TABLE, includeObject="None")
    call("list across namespaces", "GET", "/apis/wrpo.ai/v1alpha1/probes", labelSelector="app=l")
    call("list metadata only", "GET", P, labelSelector="k=x", accept="application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")

def watches() -> None:
    rv = S.get(URL + P, headers={"Authorization": f"Bearer {TOKEN}"} if TOKEN else {}).json()["metadata"]["resourceVersion"]
    call("create w", "POST", P, {**cr("w"), "metadata": {"name": "w", "labels": {"watch": "yes"}}}); call("modify w", "PATCH", P + "/w", {"spec": {"alpha": 0.6}}, MERGE); call("w leaves the selector", "PATCH", P + "/w", {"metadata": {"labels": {"watch": "no"}}}, MERGE); call("delete w", "DELETE", P + "/w")
    call("watch from a resourceVersion replays", "GET", P, stream=True, watch="true", resourceVersion=rv, timeoutSeconds=2)
    call("watch with a label selector: leaving it is DELETED", "GET", P, stream=True, watch="1", resourceVersion=rv, timeoutSeconds=2, labelSelector="watch=yes")
    call("watch one name", "GET", P, stream=True, watch="true", resourceVersion=rv, timeoutSeconds=2, fieldSelector="metadata.name=w")
    call("watch from 0 starts with ADDED", "GET", P, stream=True, watch="true", resourceVersion="0", timeoutSeconds=2, labelSelector="app=l")
    call("watch from a far past resourceVersion", "GET", P, stream=True, watch="true", resourceVersion="1", timeoutSeconds=2)
    call("watch from a future resourceVersion", "GET", P, stream=True, watch="true", resourceVersion="999999999", timeoutSeconds=2)
    call("watch-list with initial events and bookmark", "GET", P, stream=True, watch="true", sendInitialEvents="true", allowWatchBookmarks="true", resourceVersionMatch="NotOlderThan", timeoutSeconds=2, labelSelector="app=l")
    call("bad resourceVersion", "GET", P, watch="true", resourceVersion="abc", timeoutSeconds=1)

def deletes() -> None:
    call("create with finalizer", "POST", P, {**cr("f"), "metadata": {"name": "f", "finalizers": ["wrpo.ai/hold"]}})
    call("delete with finalizer: stays with deletionTimestamp", "DELETE", P + "/f"); call("get while deleting", "GET", P + "/f"); call("delete again while deleting", "DELETE", P + "/f")
    call("adding a finalizer while deleting", "PATCH", P + "/f", {"metadata": {"finalizers": ["wrpo.ai/hold", "wrpo.ai/more"]}}, MERGE); call("spec patch while deleting", "PATCH", P + "/f", {"spec": {"alpha": 0.8}}, MERGE)
    call("removing the finalizer deletes", "PATCH", P + "/f", {"metadata": {"finalizers": None}}, MERGE); call("gone", "GET", P + "/f")
    call("create p", "POST", P, cr("p")); call("delete with wrong uid precondition", "DELETE", P + "/p", {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}}); call("delete", "DELETE", P + "/p"); call("delete missing", "DELETE", P + "/p")
    time.sleep(float(os.environ.get("RECORD_GC_WAIT_S", 45)))  # the garbage collector learns of a new resource type within about half a minute
    owner = call("create owner", "POST", P, cr("o")); ref = [{"apiVersion": "wrpo.ai/v1alpha1", "kind": "Probe", "name": "o", "uid": owner["metadata"]["uid"], "controller": True, "blockOwnerDeletion": True}]
    call("create dependent ConfigMap", "POST", f"/api/v1/namespaces/{NS}/configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "dep", "ownerReferences": ref}, "data": {"k": "v"}, "immutable": True})
    call("immutable ConfigMap", "PATCH", f"/api/v1/namespaces/{NS}/configmaps/dep", {"data": {"k": "w"}}, MERGE)
    call("foreground delete of the owner", "DELETE", P + "/o", {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"}); time.sleep(3)
    call("owner gone", "GET", P + "/o"); call("dependent gone", "GET", f"/api/v1/namespaces/{NS}/configmaps/dep")
    call("delete collection by label", "DELETE", P, labelSelector="app=l"); call("collection gone", "GET", P, labelSelector="app=l")

def job(name: str, tmpl_ann: Any = None, pod: Any = None, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": {**spec, "template": {"metadata": {"annotations": tmpl_ann or {}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "img"}], **(pod or {})}}}}

def jobs() -> None:
    J = f"/apis/batch/v1/namespaces/{NS}/jobs"; x = lambda **k: {f"fake.test/{a.replace('_', '-')}": b for a, b in k.items()}
    call("job: defaults", "POST", J, job("plain", x(run_seconds="0.5")))
    call("job: restartPolicy Always refused", "POST", J, job("bad", pod={"restartPolicy": "Always"})); call("job: no containers refused", "POST", J, job("bad", pod={"containers": []}))
    call("job: Indexed without completions", "POST", J, job("bad", completionMode="Indexed")); call("job: backoffLimitPerIndex needs Indexed", "POST", J, job("bad", backoffLimitPerIndex=1)); call("job: unknown field Strict", "POST", J, job("bad", typo=1), fieldValidation="Strict")
    call("job: podFailurePolicy", "POST", J, job("policy", x(run_seconds="0.3", exit_code="65"), backoffLimit=6, podFailurePolicy={"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}, {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [64, 65, 78]}}]}))
    call("job: failing", "POST", J, job("failing", x(run_seconds="0.3", exit_code="1"), backoffLimit=1))
    call("job: indexed", "POST", J, job("indexed", x(run_seconds="0.3"), completions=3, parallelism=2, completionMode="Indexed", backoffLimitPerIndex=1))
    call("job: per-index failure", "POST", J, job("perindex", x(run_seconds="0.3", exit_code="1"), completions=2, parallelism=2, completionMode="Indexed", backoffLimitPerIndex=0, maxFailedIndexes=1))
    call("job: suspended", "POST", J, job("paused", suspend=True)); call("job: deadline", "POST", J, job("late", x(run_seconds="forever"), activeDeadlineSeconds=2)); call("job: ttl", "POST", J, job("ttl", x(run_seconds="0.2"), ttlSecondsAfterFinished=2))
    call("job: unschedulable", "POST", J, job("huge", pod={"containers": [{"name": "c", "image": "img", "resources": {"limits": {"nvidia.com/gpu": "99"}}}]})); call("job: image pull error", "POST", J, job("pull", x(pull_error="true")))
    time.sleep(float(os.environ.get("RECORD_JOBS_WAIT_S", 25)))
    for n in ("plain", "policy", "failing", "indexed", "perindex", "paused", "late", "ttl", "huge", "pull"): call(f"job after a while: {n}", "GET", f"{J}/{n}")
    call("job: template is immutable", "PATCH", J + "/plain", {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "other"}]}}}}, SMP); call("job: parallelism is mutable", "PATCH", J + "/paused", {"spec": {"parallelism": 2}}, MERGE)
    for n in ("indexed", "failing", "huge", "pull"): call(f"pods of job {n}", "GET", f"/api/v1/namespaces/{NS}/pods", labelSelector=f"job-name={n}")
    call("job table", "GET", J, accept=TABLE); call("pod table", "GET", f"/api/v1/namespaces/{NS}/pods", accept=TABLE)
    call("job delete, default propagation of the raw API", "DELETE", J + "/failing", note="pods are left behind: always name a propagationPolicy"); call("resume a suspended job", "PATCH", J + "/paused", {"spec": {"suspend": False}}, MERGE)
    call("events of the job policy", "GET", f"/api/v1/namespaces/{NS}/events", fieldSelector="involvedObject.name=policy")

def access() -> None:
    call("serviceaccount", "POST", f"/api/v1/namespaces/{NS}/serviceaccounts", {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "worker"}})
    call("role", "POST", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NS}/roles", {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r"}, "rules": [{"apiGroups": ["wrpo.ai"], "resources": ["probes"], "verbs": ["get", "list"]}, {"apiGroups": ["wrpo.ai"], "resources": ["probes/status"], "verbs": ["patch"], "resourceNames": ["a"]}]})
    call("rolebinding", "POST", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NS}/rolebindings", {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "r"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}, "subjects": [{"kind": "ServiceAccount", "name": "worker", "namespace": NS}]})
    t = call("token request", "POST", f"/api/v1/namespaces/{NS}/serviceaccounts/worker/token", {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}})["status"]["token"]
    b = call("token request with an audience", "POST", f"/api/v1/namespaces/{NS}/serviceaccounts/worker/token", {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": ["wrpo.ai"], "expirationSeconds": 600}})["status"]["token"]
    time.sleep(1)
    call("RBAC: list allowed", "GET", P, token=t, limit=1); call("RBAC: create forbidden", "POST", P, cr("q"), token=t); call("RBAC: other namespace forbidden", "GET", P.replace(NS, "default"), token=t); call("RBAC: cluster list forbidden", "GET", "/apis/wrpo.ai/v1alpha1/probes", token=t)
    call("RBAC: named status allowed", "PATCH", P + "/a/status", {"status": {"phase": "W"}}, MERGE, token=t); call("RBAC: other name forbidden", "PATCH", P + "/s/status", {"status": {"phase": "W"}}, MERGE, token=t); call("RBAC: secrets forbidden", "GET", f"/api/v1/namespaces/{NS}/secrets", token=t)
    call("garbage token", "GET", P, token="garbage"); call("audience token is no API token", "GET", P, token=b)
    R = "/apis/authentication.k8s.io/v1/tokenreviews"
    for name, spec in {"right audience": {"token": b, "audiences": ["wrpo.ai"]}, "wrong audience": {"token": b, "audiences": ["other"]}, "garbage": {"token": "x", "audiences": ["wrpo.ai"]}, "API token": {"token": t}}.items():
        call(f"token review: {name}", "POST", R, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec})
    call("self subject access review: no", "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": {"namespace": NS, "verb": "create", "group": "wrpo.ai", "resource": "probes"}}}, token=t)
    call("PodSecurity restricted namespace", "POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NS + "-r", "labels": {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}}})
    time.sleep(2)
    call("restricted: pod refused", "POST", f"/api/v1/namespaces/{NS}-r/pods", {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}); call("restricted: job accepted with a warning", "POST", f"/apis/batch/v1/namespaces/{NS}-r/jobs", job("j")); time.sleep(3); call("restricted: the job's events tell", "GET", f"/api/v1/namespaces/{NS}-r/events")
    L = f"/apis/coordination.k8s.io/v1/namespaces/{NS}/leases"
    l = call("lease", "POST", L, {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}, "spec": {"holderIdentity": "a", "leaseDurationSeconds": 15}}); call("lease update", "PUT", L + "/l", {**l, "spec": {**l["spec"], "holderIdentity": "b"}}); call("lease update, stale", "PUT", L + "/l", {**l, "spec": {**l["spec"], "holderIdentity": "c"}})

def end() -> None:
    call("delete CRD", "DELETE", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/probes.wrpo.ai"); time.sleep(3); call("resource gone with its CRD", "GET", P)
    for n in (NS, NS + "-r"): call(f"delete namespace {n}", "DELETE", f"/api/v1/namespaces/{n}")
    call("create in a terminating namespace", "POST", f"/api/v1/namespaces/{NS}/configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "late"}})

for part in (crds, validation, updates, apply_, lists, watches, deletes, jobs, access, end):
    try: part()
    except Exception as e: print(f"{part.__name__} stopped: {type(e).__name__}: {e}", file=sys.stderr)
json.dump(OUT, open(sys.argv[1], "w"), indent=1, ensure_ascii=False); print(len(OUT), "requests recorded")
