"""Discovery documents: /version, /api, /apis, resource lists, and their aggregated form."""

from __future__ import annotations

from wrpo_devcluster.apiserver.schema.kinds import Kind, Registry
from wrpo_devcluster.client import JsonObject

VERSION: JsonObject = {
    "major": "1", "minor": "36", "gitVersion": "v1.36.0", "gitCommit": "", "gitTreeState": "clean",
    "buildDate": "2026-04-22T00:00:00Z", "goVersion": "go1.26", "compiler": "gc", "platform": "linux/amd64",
}  # fmt: skip
# Subresource -> (group, version, kind when not the parent's, verbs)
_SUBRESOURCES: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "status": ("", "", "", ("get", "patch", "update")),
    "scale": ("autoscaling", "v1", "Scale", ("get", "patch", "update")),
    "log": ("", "", "", ("get",)),
    "eviction": ("policy", "v1", "Eviction", ("create",)),
    "binding": ("", "", "Binding", ("create",)),
    "token": ("authentication.k8s.io", "v1", "TokenRequest", ("create",)),
    "finalize": ("", "", "", ("update",)),
}


def allows(subresource: str, verb: str) -> bool:
    """Return whether a subresource supports a verb of RBAC."""
    return verb in _SUBRESOURCES[subresource][3]


def api_versions() -> JsonObject:
    """Return the document at /api."""
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def group_document(registry: Registry, group: str) -> JsonObject | None:
    """Return the document at /apis/GROUP; None if no version of the group is served."""
    versions = registry.groups().get(group)
    if not versions:
        return None
    listed = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
    return {"kind": "APIGroup", "apiVersion": "v1", "name": group, "versions": listed, "preferredVersion": listed[0]}


def group_list(registry: Registry) -> JsonObject:
    """Return the document at /apis."""
    documents = [group_document(registry, group) for group in registry.groups()]
    groups = [
        {key: value for key, value in document.items() if key not in {"kind", "apiVersion"}}
        for document in documents
        if document is not None
    ]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def resource_list(registry: Registry, group: str, version: str) -> JsonObject | None:
    """Return the resources of a version, subresources included; None if it is not served."""
    kinds = registry.of_group(group, version)
    if not kinds:
        return None
    resources: list[JsonObject] = []
    for kind in sorted(kinds, key=lambda kind: kind.plural):
        resources.append(_resource(kind))
        resources += [_subresource(kind, name) for name in sorted(kind.subresources)]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/{version}" if group else version,
        "resources": resources,
    }


def _other_names(kind: Kind) -> JsonObject:
    found = {"shortNames": list(kind.short_names), "categories": list(kind.categories)}
    return {field: names for field, names in found.items() if names}


def _resource(kind: Kind) -> JsonObject:
    entry: JsonObject = {
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": list(kind.verbs),
        **_other_names(kind),
    }
    if "get" in kind.verbs:
        entry["storageVersionHash"] = kind.storage_hash
    return entry


def _subresource(kind: Kind, name: str) -> JsonObject:
    group, version, other, verbs = _SUBRESOURCES[name]
    entry: JsonObject = {
        "name": f"{kind.plural}/{name}",
        "singularName": "",
        "namespaced": kind.namespaced,
        "kind": other or kind.kind,
        "verbs": list(verbs),
    }
    if group:
        entry |= {"group": group, "version": version}
    return entry


def aggregated(registry: Registry, groups: dict[str, list[str]]) -> JsonObject:
    """Return the apidiscovery.k8s.io/v2 APIGroupDiscoveryList of groups."""
    items = []
    for group, versions in groups.items():
        listed = [
            {
                "version": version,
                "resources": [
                    _aggregated_resource(kind)
                    for kind in sorted(registry.of_group(group, version), key=lambda kind: kind.plural)
                ],
                "freshness": "Current",
            }
            for version in versions
        ]
        items.append({"metadata": {"name": group} if group else {}, "versions": listed})
    return {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}


def _aggregated_resource(kind: Kind) -> JsonObject:
    entry: JsonObject = {
        "resource": kind.plural,
        "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "scope": "Namespaced" if kind.namespaced else "Cluster",
        "singularResource": kind.singular,
        "verbs": list(kind.verbs),
        **_other_names(kind),
    }
    subresources = []
    for name in sorted(kind.subresources):
        group, version, other, verbs = _SUBRESOURCES[name]
        response = {"group": group or kind.group, "version": version or kind.version, "kind": other or kind.kind}
        subresources.append({"subresource": name, "responseKind": response, "verbs": list(verbs)})
    if subresources:
        entry["subresources"] = subresources
    return entry
