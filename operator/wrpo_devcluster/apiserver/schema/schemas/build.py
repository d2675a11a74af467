"""Derive `kinds.json.gz` (schemas of the served built-in kinds) from the `kubernetes-validate` package.

usage: python -m wrpo_devcluster.apiserver.schema.schemas.build

A development-time program: at run time only the resulting file is read. Origin: the published OpenAPI
definitions of Kubernetes 1.36 (Apache-2.0) as `kubernetes-validate` packages them.
"""

from __future__ import annotations

import gzip
import importlib.resources
import json
from pathlib import Path
from typing import Any

VERSION = "v1.36.0-local"
KINDS = {
    "io.k8s.api.core.v1": [
        "Namespace", "Pod", "Service", "Endpoints", "ConfigMap", "Secret", "ServiceAccount", "Event", "Node",
        "PersistentVolume", "PersistentVolumeClaim", "ResourceQuota", "LimitRange", "Binding",
    ],
    "io.k8s.api.apps.v1": ["Deployment", "ReplicaSet"],
    "io.k8s.api.autoscaling.v1": ["Scale"],
    "io.k8s.api.batch.v1": ["Job", "CronJob"],
    "io.k8s.api.coordination.v1": ["Lease"],
    "io.k8s.api.rbac.v1": ["Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"],
    "io.k8s.api.authentication.v1": ["TokenReview", "TokenRequest", "SelfSubjectReview"],
    "io.k8s.api.authorization.v1": [
        "SelfSubjectAccessReview", "SubjectAccessReview", "LocalSubjectAccessReview", "SelfSubjectRulesReview",
    ],
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1": ["CustomResourceDefinition"],
    "io.k8s.api.networking.v1": ["NetworkPolicy", "Ingress", "IngressClass"],
    "io.k8s.api.policy.v1": ["PodDisruptionBudget", "Eviction"],
    "io.k8s.api.scheduling.v1": ["PriorityClass"],
    "io.k8s.api.storage.v1": ["StorageClass"],
    "io.k8s.api.admissionregistration.v1": [
        "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
    ],
    "io.k8s.api.events.v1": ["Event"],
    "io.k8s.api.discovery.v1": ["EndpointSlice"],
    "io.k8s.apimachinery.pkg.apis.meta.v1": ["DeleteOptions", "ObjectMeta", "Status"],
}  # fmt: skip
PREFIX = "#/$defs/"


def _clean(node: Any) -> Any:
    """Drop the packager's null types and enums of apiVersion and kind, keep everything else."""
    if isinstance(node, list):
        return [_clean(item) for item in node]
    if not isinstance(node, dict):
        return node
    out = {key: _clean(value) for key, value in node.items() if key not in {"$id", "$schema"}}
    kinds = out.get("type")
    if isinstance(kinds, list):
        out["type"] = next(kind for kind in kinds if kind != "null")
    if isinstance(out.get("$ref"), str):
        out["$ref"] = out["$ref"].removeprefix(PREFIX)
    return out


def _references(node: Any) -> set[str]:
    if isinstance(node, list):
        return set().union(*(_references(item) for item in node))
    if not isinstance(node, dict):
        return set()
    found = set().union(*(_references(value) for value in node.values())) if node else set()
    if isinstance(node.get("$ref"), str):
        found.add(node["$ref"])
    return found


def build() -> dict[str, Any]:
    """Return the definitions that the served kinds need, by name."""
    folder = importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema" / VERSION
    definitions = {
        name: _clean(body)
        for name, body in json.loads((folder / "_definitions.json").read_text(encoding="utf-8"))["$defs"].items()
    }
    for body in definitions.values():
        for name in ("apiVersion", "kind"):
            body.get("properties", {}).get(name, {}).pop("enum", None)
    wanted = [f"{package}.{kind}" for package, kinds in KINDS.items() for kind in kinds]
    kept: dict[str, Any] = {}
    while wanted:
        name = wanted.pop()
        if name not in kept:
            kept[name] = definitions[name]
            wanted += sorted(_references(definitions[name]))
    return {"origin": f"kubernetes-validate {VERSION}", "definitions": dict(sorted(kept.items()))}


def main() -> None:
    """Write `kinds.json.gz`; equal definitions give equal bytes."""
    path = Path(__file__).with_name("kinds.json.gz")
    text = json.dumps(build(), separators=(",", ":"), sort_keys=True).encode()
    path.write_bytes(gzip.compress(text, compresslevel=9, mtime=0))
    print(f"{path}: {len(text)} bytes, {path.stat().st_size} compressed")


if __name__ == "__main__":
    main()
