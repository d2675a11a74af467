"""Validation of CustomResourceDefinitions except their schemas, by the rules of kube-apiserver 1.36."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from wrpo_devcluster.apiserver.server import ApiServer
from wrpo_devcluster.client import CRDS, ApiError

GROUP = "corpus.example"
Causes = list[tuple[str, str]]


def crd(*, group: str = GROUP, **parts: Any) -> dict[str, Any]:
    """Return a definition; `parts` replaces fields of its spec, None removes one."""
    spec: dict[str, Any] = {"group": group, "scope": "Namespaced", "names": names(), "versions": [version()], **parts}
    return {
        "metadata": {"name": f"things.{group}"},
        "spec": {name: value for name, value in spec.items() if value is not None},
    }


def names(**parts: Any) -> dict[str, Any]:
    return {"plural": "things", "singular": "thing", "kind": "Thing", **parts}


def version(name: str = "v1", *, root: Any = None, **parts: Any) -> dict[str, Any]:
    fields = {"f": {"type": "string"}, "l": {"type": "array", "items": {"type": "string"}}}
    schema = {"openAPIV3Schema": {"type": "object", "properties": fields, **(root or {})}}
    return {"name": name, "served": True, "storage": True, "schema": schema, **parts}


def of_version(**parts: Any) -> dict[str, Any]:
    return crd(versions=[version(**parts)])


def column(**parts: Any) -> dict[str, Any]:
    return of_version(additionalPrinterColumns=[{"name": "F", "type": "string", "jsonPath": ".f", **parts}])


def scale(**paths: str) -> dict[str, Any]:
    known = {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}
    return of_version(subresources={"scale": {**known, **paths}})


def selectable(*paths: str) -> dict[str, Any]:
    return of_version(selectableFields=[{"jsonPath": path} for path in paths])


def webhook(**parts: Any) -> dict[str, Any]:
    return crd(conversion={"strategy": "Webhook", "webhook": parts})


NO_STORED = [("Invalid", "spec.versions"), ("Invalid", "status.storedVersions")]
BAD_VERSION = [("Invalid", "spec.version"), ("Invalid", "spec.versions[0].name")]
URL = {"url": "https://converter.example"}
CASES: dict[str, tuple[dict[str, Any], Causes]] = {
    "a name of something else": (
        {**crd(), "metadata": {"name": f"others.{GROUP}"}}, [("Invalid", "metadata.name")],
    ),
    "no name": ({**crd(), "metadata": {}}, [("Required", "metadata.name")]),
    "a group without a dot": (crd(group="corpus"), [("Invalid", "spec.group")]),
    "no scope": (crd(scope=None), [("Required", "spec.scope")]),
    "another scope": (crd(scope="Global"), [("NotSupported", "spec.scope")]),
    "no singular": (crd(names=names(singular="")), []),
    "no kind": (
        crd(names={"plural": "things"}),
        [("Required", f"spec.names.{name}") for name in ("kind", "listKind", "singular")],
    ),
    "a kind with an underscore": (crd(names=names(kind="My_Thing")), [("Invalid", "spec.names.kind"), ("Invalid", "spec.names.listKind")]),  # noqa: E501
    "a kind that is its list": (crd(names=names(listKind="Thing")), [("Invalid", "spec.names.listKind")]),
    "a short name in capitals": (crd(names=names(shortNames=["th", "TH"])), [("Invalid", "spec.names.shortNames[1]")]),
    "an empty short name": (crd(names=names(shortNames=[""])), [("Invalid", "spec.names.shortNames[0]")]),
    "a category of two words": (crd(names=names(categories=["my all"])), [("Invalid", "spec.names.categories[0]")]),
    "no versions": (crd(versions=None), NO_STORED),
    "no stored version": (of_version(storage=False), NO_STORED),
    "two stored versions": (crd(versions=[version(), version("v2")]), [("Invalid", "spec.versions")]),
    "two versions of one name": (crd(versions=[version(), version(storage=False)]), [("Invalid", "spec.versions")]),
    "a version that begins with a digit": (of_version(name="1v"), BAD_VERSION),
    "a version without a schema": (
        of_version(schema={}), [("Required", "spec.versions[0].schema.openAPIV3Schema")],
    ),
    "a warning of a version that is not deprecated": (
        of_version(deprecationWarning="old"), [("Invalid", "spec.versions[0].deprecationWarning")],
    ),
    "a warning of a deprecated version": (of_version(deprecated=True, deprecationWarning="old"), []),
    "a warning of 256 bytes": (of_version(deprecated=True, deprecationWarning="ä" * 128), []),
    "a warning of 257 bytes": (
        of_version(deprecated=True, deprecationWarning="ä" * 128 + "x"),
        [("Invalid", "spec.versions[0].deprecationWarning")],
    ),
    "a warning of two lines": (
        of_version(deprecated=True, deprecationWarning="a\nb"), [("Invalid", "spec.versions[0].deprecationWarning")],
    ),
    "an empty warning": (
        of_version(deprecated=True, deprecationWarning=""), [("Invalid", "spec.versions[0].deprecationWarning")],
    ),
    "unknown fields kept everywhere": (crd(preserveUnknownFields=True), [("Invalid", "spec.preserveUnknownFields")]),
    "a column": (column(format="date-time"), []),
    "a column without a name": (column(name=""), [("Required", "spec.additionalPrinterColumns[0].name")]),
    "a column of another format": (column(format="uuid"), [("Invalid", "spec.additionalPrinterColumns[0].format")]),
    "a column of another type": (column(type="object"), [("Invalid", "spec.additionalPrinterColumns[0].type")]),
    "a column that only one version has": (
        crd(versions=[version(), version("v2", storage=False, additionalPrinterColumns=[{"name": "F"}])]),
        [("Required", f"spec.versions[1].additionalPrinterColumns[0].{name}") for name in ("JSONPath", "type")],
    ),
    "a scale": (scale(labelSelectorPath=".spec.selector"), []),
    "a scale without paths": (
        of_version(subresources={"scale": {}}),
        [("Required", f"spec.subresources.scale.{name}") for name in ("specReplicasPath", "statusReplicasPath")],
    ),
    "a scale whose wish is in the status": (
        scale(specReplicasPath=".status.replicas"), [("Invalid", "spec.subresources.scale.specReplicasPath")],
    ),
    "a scale whose state is in the spec": (
        scale(statusReplicasPath=".spec.replicas"), [("Invalid", "spec.subresources.scale.statusReplicasPath")],
    ),
    "a scale whose selector is in the metadata": (
        scale(labelSelectorPath=".metadata.labels"), [("Invalid", "spec.subresources.scale.labelSelectorPath")],
    ),
    "a root with bounds and a status": (
        of_version(subresources={"status": {}}, root={"minProperties": 1}),
        [("Invalid", "spec.validation.openAPIV3Schema")],
    ),
    "a root with bounds without a status": (of_version(root={"minProperties": 1}), []),
    "a root with rules and a status": (
        of_version(subresources={"status": {}}, root={"x-kubernetes-validations": [{"rule": "true"}]}), [],
    ),
    "a selectable field": (selectable(".f"), []),
    "a selectable field without a path": (selectable(""), [("Required", "spec.selectableFields[0].jsonPath")]),
    "a selectable field that is nowhere": (selectable(".g"), [("Invalid", "spec.selectableFields[0].jsonPath")]),
    "a selectable field that is a list": (selectable(".l"), [("Invalid", "spec.selectableFields[0].jsonPath")]),
    "a selectable field in brackets": (selectable("['f']"), [("Invalid", "spec.selectableFields[0].jsonPath")]),
    "a selectable field of the metadata": (
        selectable(".metadata.name"), [("Invalid", "spec.selectableFields[0].jsonPath")],
    ),
    "a selectable field twice": (selectable(".f", ".f"), [("Duplicate", "spec.selectableFields[1].jsonPath")]),
    "nine selectable fields": (
        of_version(
            root={"properties": {f"f{n}": {"type": "string"} for n in range(9)}},
            selectableFields=[{"jsonPath": f".f{n}"} for n in range(9)],
        ),
        [("TooMany", "spec.selectableFields")],
    ),
    "a conversion without a strategy": (crd(conversion={}), [("Required", "spec.conversion.strategy")]),
    "a conversion of another strategy": (
        crd(conversion={"strategy": "Magic"}), [("NotSupported", "spec.conversion.strategy")],
    ),
    "a webhook that nothing calls": (
        crd(conversion={"strategy": "None", "webhook": {"clientConfig": URL, "conversionReviewVersions": ["v1"]}}),
        [("Forbidden", f"spec.conversion.{name}") for name in ("conversionReviewVersions", "webhookClientConfig")],
    ),
    "a webhook without an address": (
        webhook(conversionReviewVersions=["v1"]), [("Required", "spec.conversion.webhookClientConfig")],
    ),
    "a webhook with an address but nothing in it": (
        webhook(clientConfig={}, conversionReviewVersions=["v1"]),
        [("Required", "spec.conversion.webhookClientConfig")],
    ),
    "a webhook without reviews": (
        webhook(clientConfig=URL), [("Required", "spec.conversion.conversionReviewVersions")],
    ),
    "a webhook with unknown reviews": (
        webhook(clientConfig=URL, conversionReviewVersions=["v9"]),
        [("Invalid", "spec.conversion.conversionReviewVersions")],
    ),
    "a webhook with a review twice": (
        webhook(clientConfig=URL, conversionReviewVersions=["v1", "v1"]),
        [("Invalid", "spec.conversion.conversionReviewVersions[1]")],
    ),
    "a webhook, which this server never calls": (
        webhook(clientConfig=URL, conversionReviewVersions=["v1"]), [("Forbidden", "spec.conversion.strategy")],
    ),
    "a protected group": (
        crd(group="x.k8s.io"), [("Required", "metadata.annotations[api-approved.kubernetes.io]")],
    ),
}  # fmt: skip


async def answer(state: Path, body: dict[str, Any]) -> Causes:
    server = ApiServer(state, admin_token="admin")
    try:
        await server.client("system:tests").create(CRDS, body)
    except ApiError as error:
        if (error.code, error.reason) != (422, "Invalid"):
            raise
        found = error.status["details"]["causes"]
        return sorted((cause["reason"].removeprefix("FieldValue"), cause["field"]) for cause in found)
    finally:
        await server.close()
    return []


@pytest.mark.parametrize(("body", "expected"), CASES.values(), ids=CASES.keys())
def test_a_definition_is_taken_or_refused_with_its_places(tmp_path: Path, body: Any, expected: Causes) -> None:
    assert asyncio.run(answer(tmp_path / "state", body)) == sorted(expected)


@pytest.mark.parametrize(
    ("approval", "expected"),
    [
        ("https://github.com/kubernetes/kubernetes/pull/1", []),
        ("unapproved, a trial", []),
        ("yes", [("Invalid", "metadata.annotations[api-approved.kubernetes.io]")]),
    ],
)
def test_a_protected_group_needs_the_link_to_its_review(tmp_path: Path, approval: str, expected: Causes) -> None:
    body = crd(group="x.kubernetes.io")
    body["metadata"]["annotations"] = {"api-approved.kubernetes.io": approval}

    assert asyncio.run(answer(tmp_path / "state", body)) == expected
