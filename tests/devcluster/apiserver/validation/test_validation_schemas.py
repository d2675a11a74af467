"""Verdicts on CRD schemas and on objects with edge values, as a real kube-apiserver 1.36 gave them."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from wrpo_devcluster.apiserver.server import ApiServer
from wrpo_devcluster.client import CRDS, NAMESPACES, ApiError, Client, Resource

TRANSCRIPT = Path(__file__).parents[2] / "transcript"
GROUP = "corpus.example"
MOST_KNOWN = 5
Verdict = tuple[Any, ...]
RULED = {"type": "object", "properties": {"a": {"type": "integer"}, "s": {"type": "string", "maxLength": 9}}}


def crd_of(index: int, schema: Any) -> dict[str, Any]:
    names = {"plural": f"things{index}", "singular": f"thing{index}", "kind": f"Thing{index}"}
    root = {"type": "object", "properties": {"f": schema}}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": root}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"things{index}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {**names, "listKind": f"Thing{index}List"},
            "versions": [version],
        },
    }


def refused(error: ApiError) -> Verdict:
    causes = (error.status.get("details") or {}).get("causes", [])
    return error.code, error.reason, sorted((cause["reason"], cause["field"]) for cause in causes)


def recorded(answer: dict[str, Any]) -> Verdict:
    if answer["code"] == 201:
        return 201, answer.get("f")
    return answer["code"], answer["reason"], sorted((reason, field) for reason, field, _ in answer["causes"])


async def register(client: Client, index: int, schema: Any) -> Verdict:
    try:
        await client.create(CRDS, crd_of(index, schema))
    except ApiError as error:
        return refused(error)
    return 201, None


async def create(client: Client, index: int, number: int, value: Any) -> Verdict:
    body = {"apiVersion": f"{GROUP}/v1", "kind": f"Thing{index}", "metadata": {"name": f"o{number}"}, "f": value}
    try:
        found = await client.create(Resource(GROUP, "v1", f"things{index}"), body, "ns")
    except ApiError as error:
        return refused(error)
    return 201, found.get("f", "<absent>")


async def differences(state: Path, corpus: list[dict[str, Any]]) -> dict[str, tuple[Verdict, Verdict]]:
    server = ApiServer(state, admin_token="admin")
    client = server.client("system:tests")
    await client.create(NAMESPACES, {"metadata": {"name": "ns"}})
    found = {}
    for index, entry in enumerate(corpus):
        ours = await register(client, index, entry["schema"])
        if ours != recorded(entry["crd"]):
            found[entry["name"]] = recorded(entry["crd"]), ours
            continue
        for number, one in enumerate(entry["objects"]):
            ours = await create(client, index, number, one["value"])
            if ours != recorded(one["answer"]):
                found[f"{entry['name']} / {json.dumps(one['value'])}"] = recorded(one["answer"]), ours
    await server.close()
    return found


def test_schemas_and_objects_get_the_real_servers_verdict_but_for_the_listed_ones(tmp_path: Path) -> None:
    corpus = json.loads(gzip.decompress((TRANSCRIPT / "crd-corpus.json.gz").read_bytes()))
    known = yaml.safe_load((TRANSCRIPT / "known_schema_differences.yaml").read_text(encoding="utf-8"))

    found = asyncio.run(differences(tmp_path / "state", corpus))

    assert sum(len(entry["objects"]) for entry in corpus) + len(corpus) > 1000
    assert {name: verdicts for name, verdicts in found.items() if name not in known} == {}
    assert known.keys() <= found.keys(), "the list names entries that agree now: take them off"
    assert len(known) <= MOST_KNOWN


def ruled(**rule: Any) -> dict[str, Any]:
    return {**RULED, "x-kubernetes-validations": [{"rule": "self.a > 0", **rule}]}


def at(*causes: tuple[str, str]) -> Verdict:
    where = "spec.validation.openAPIV3Schema.properties[f]"
    return 422, "Invalid", sorted((f"FieldValue{reason}", f"{where}{below}") for reason, below in causes)


RULE = ".x-kubernetes-validations[0]"
SCHEMAS: dict[str, tuple[dict[str, Any], Verdict]] = {
    "a rule with an unknown field": (ruled(rule="self.b == 1"), at(("Invalid", f"{RULE}.rule"))),
    "a rule that is a number": (ruled(rule="self.a"), at(("Invalid", f"{RULE}.rule"))),
    "a rule that says an int equals a double": (ruled(rule="self.a == 1.0"), at(("Invalid", f"{RULE}.rule"))),
    "a rule that compares an int with a double for order": (ruled(rule="self.a < 1.5"), (201, None)),
    "a rule with an unknown function": (ruled(rule="self.s.shout() == 'A'"), at(("Invalid", f"{RULE}.rule"))),
    "a rule with an unknown name": (ruled(rule="other == 1"), at(("Invalid", f"{RULE}.rule"))),
    "a list of mixed types": (ruled(rule="self.a in [1, 'a']"), at(("Invalid", f"{RULE}.rule"))),
    "an empty rule": (ruled(rule=" "), at(("Required", f"{RULE}.rule"))),
    "a rule of two lines without a message": (ruled(rule="self.a >\n 0"), at(("Required", f"{RULE}.message"))),
    "a rule of two lines with a message": (ruled(rule="self.a >\n 0", message="no"), (201, None)),
    "a blank message": (ruled(message=" "), at(("Invalid", f"{RULE}.message"))),
    "a messageExpression that is no text": (ruled(messageExpression="1"), at(("Invalid", f"{RULE}.messageExpression"))),
    "a messageExpression that is a text": (ruled(messageExpression="'s is ' + self.s"), (201, None)),
    "an unknown reason": (ruled(reason="Nope"), at(("NotSupported", f"{RULE}.reason"))),
    "a fieldPath to a field": (ruled(fieldPath=".a"), (201, None)),
    "a fieldPath in brackets": (ruled(fieldPath="['a']"), (201, None)),
    "a fieldPath to nowhere": (ruled(fieldPath=".b"), at(("Invalid", f"{RULE}.fieldPath"))),
    "a fieldPath without a dot": (ruled(fieldPath="a"), at(("Invalid", f"{RULE}.fieldPath"))),
    "optionalOldSelf without oldSelf": (ruled(optionalOldSelf=True), at(("Invalid", f"{RULE}.optionalOldSelf"))),
    "oldSelf in a list whose items cannot be identified": (
        {
            "type": "array", "maxItems": 3,
            "items": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > oldSelf"}]},
        },
        at(("Invalid", f".items{RULE}.rule")),
    ),
    "a number with an exclusive fraction and default 0": (
        {"type": "number", "maximum": 0.5, "exclusiveMaximum": True, "default": 0}, at(("Invalid", ".default")),
    ),
    "a default below a default": (
        {"type": "object", "default": {"a": "x"}, "properties": {"a": {"type": "integer"}}},
        at(("TypeInvalid", ".default.a")),
    ),
    "a field that only an alternative declares": (
        {"type": "object", "anyOf": [{"required": ["a"]}, {"properties": {"a": {"minimum": 1}}}]},
        at(("Required", ".properties[a]")),
    ),
    "a list-map key that may be null": (
        {
            "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"],
            "items": {"type": "object", "required": ["n"], "properties": {"n": {"type": "string", "nullable": True}}},
        },
        at(("Forbidden", ".items.properties[n].nullable")),
    ),
    "a set of objects": (
        {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "object", "properties": {}}},
        at(("Invalid", ".items.x-kubernetes-map-type")),
    ),
    "a map-type of a list": (
        {"type": "array", "items": {"type": "string"}, "x-kubernetes-map-type": "atomic"}, at(("Invalid", ".type")),
    ),
    "int-or-string as controller-gen writes it": (
        {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}], "pattern": "^1"},
        (201, None),
    ),
    "a pattern that looks behind": ({"type": "string", "pattern": "(?<=a)b"}, at(("Invalid", ".pattern"))),
    "a pattern that repeats too often": ({"type": "string", "pattern": "a{1001}"}, at(("Invalid", ".pattern"))),
    "a pattern with a back reference": ({"type": "string", "pattern": r"(a)\1"}, at(("Invalid", ".pattern"))),
    "a rule and a fault of the structure, which hides it": (
        {
            "type": "object", "properties": {"a": {"type": "integer"}, "l": {"type": "array"}},
            "x-kubernetes-validations": [{"rule": "self.b == 1"}],
        },
        at(("Required", ".properties[l].items")),
    ),
    "a rule and a fault of a default, which hides it": (
        {
            "type": "object", "properties": {"a": {"type": "integer", "default": "x"}},
            "x-kubernetes-validations": [{"rule": "self.b == 1"}],
        },
        at(("TypeInvalid", ".properties[a].default")),
    ),
    "oldSelf in an atomic map": (
        {
            "type": "object", "x-kubernetes-map-type": "atomic",
            "properties": {"a": {"type": "integer", "x-kubernetes-validations": [{"rule": "self >= oldSelf"}]}},
        },
        at(("Invalid", f".properties[a]{RULE}.rule")),
    ),
    "a default below additionalProperties": (
        {
            "type": "object",
            "additionalProperties": {"type": "object", "properties": {"a": {"type": "integer", "default": 1}}},
        },
        (201, None),
    ),
    "a default below additionalProperties of an embedded object's metadata": (
        {
            "type": "object", "x-kubernetes-embedded-resource": True, "x-kubernetes-preserve-unknown-fields": True,
            "properties": {
                "metadata": {
                    "type": "object",
                    "properties": {
                        "labels": {"type": "object", "additionalProperties": {"type": "string", "default": "x"}},
                    },
                },
            },
        },
        at(("Forbidden", ".properties[metadata].properties[labels].additionalProperties.default")),
    ),
    "uniqueItems": (
        {"type": "array", "items": {"type": "string"}, "uniqueItems": True}, at(("Forbidden", ".uniqueItems")),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("schema", "expected"), SCHEMAS.values(), ids=SCHEMAS.keys())
def test_a_schema_is_taken_or_refused_with_its_place(tmp_path: Path, schema: Any, expected: Verdict) -> None:
    async def scenario() -> Verdict:
        server = ApiServer(tmp_path / "state", admin_token="admin")
        found = await register(server.client("system:tests"), 0, schema)
        await server.close()
        return found

    assert asyncio.run(scenario()) == expected


PATHS: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "one version": ([{"type": "array"}], ["spec.validation.openAPIV3Schema.properties[f].items"]),
    "two versions of one schema": ([{"type": "array"}] * 2, ["spec.validation.openAPIV3Schema.properties[f].items"]),
    "two versions of two schemas": (
        [{"type": "string"}, {"type": "array"}],
        ["spec.versions[1].schema.openAPIV3Schema.properties[f].items"],
    ),
}


@pytest.mark.parametrize(("schemas", "expected"), PATHS.values(), ids=PATHS.keys())
def test_a_fault_of_a_schema_that_all_versions_share_is_told_once(
    tmp_path: Path, schemas: list[dict[str, Any]], expected: list[str]
) -> None:
    crd = crd_of(0, {})
    crd["spec"]["versions"] = [
        {**crd_of(0, schema)["spec"]["versions"][0], "name": f"v{number + 1}", "storage": number == 0}
        for number, schema in enumerate(schemas)
    ]

    async def scenario() -> list[str]:
        server = ApiServer(tmp_path / "state", admin_token="admin")
        try:
            await server.client("system:tests").create(CRDS, crd)
        except ApiError as error:
            return [cause["field"] for cause in error.status["details"]["causes"]]
        finally:
            await server.close()
        return []

    assert asyncio.run(scenario()) == expected


def nested(depth: int, **bounds: int) -> dict[str, Any]:
    expression = "true"
    for level in range(depth):
        expression = f"self.l.all(x{level}, {expression})"
    listed = {"type": "array", "items": {"type": "string"}, **bounds}
    return {"type": "object", "properties": {"l": listed}, "x-kubernetes-validations": [{"rule": expression}]}


COSTS: dict[str, tuple[dict[str, Any], int]] = {
    "a loop over an unbounded list": (nested(1), 201),
    "a loop in a loop over an unbounded list": (nested(2), 422),
    "a loop in a loop over a bounded list": (nested(2, maxItems=100), 201),
    "a pattern on an unbounded text": (
        {"type": "object", "properties": {"s": {"type": "string"}}, "x-kubernetes-validations": [{"rule": "self.s.matches('^[a-z]+$')"}]},  # noqa: E501
        201,
    ),
    "a text within a text, both unbounded": (
        {"type": "object", "properties": {"s": {"type": "string"}}, "x-kubernetes-validations": [{"rule": "self.s.contains(self.s)"}]},  # noqa: E501
        422,
    ),
    "a text within a text, both bounded": (
        {"type": "object", "properties": {"s": {"type": "string", "maxLength": 64}}, "x-kubernetes-validations": [{"rule": "self.s.contains(self.s)"}]},  # noqa: E501
        201,
    ),
    "a pattern on each text of an unbounded list": (
        {"type": "array", "items": {"type": "string", "maxLength": 64, "x-kubernetes-validations": [{"rule": "self.matches('^[a-z]+$')"}]}},  # noqa: E501
        422,
    ),
    "a pattern on each text of a bounded list": (
        {"type": "array", "maxItems": 64, "items": {"type": "string", "maxLength": 64, "x-kubernetes-validations": [{"rule": "self.matches('^[a-z]+$')"}]}},  # noqa: E501
        201,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("schema", "code"), COSTS.values(), ids=COSTS.keys())
def test_a_rule_that_may_cost_too_much_is_refused(tmp_path: Path, schema: Any, code: int) -> None:
    async def scenario() -> Verdict:
        server = ApiServer(tmp_path / "state", admin_token="admin")
        found = await register(server.client("system:tests"), 0, schema)
        await server.close()
        return found

    assert asyncio.run(scenario())[0] == code


def rules_in(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield from node.get("x-kubernetes-validations") or ()
        for child in node.values():
            yield from rules_in(child)
    elif isinstance(node, list):
        for child in node:
            yield from rules_in(child)


def test_the_product_s_own_crds_are_taken(tmp_path: Path) -> None:
    root = Path(__file__).parents[4]
    files = [*(root / "crds").glob("*.yaml"), *(root / "operator/wrpo_devcluster/manifests").glob("*.yaml")]
    crds = [
        document
        for path in files
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
        if document and document.get("kind") == "CustomResourceDefinition"
    ]

    async def scenario() -> None:
        server = ApiServer(tmp_path / "state", admin_token="admin")
        for crd in crds:
            await server.client("system:tests").create(CRDS, crd)
        await server.close()

    asyncio.run(scenario())
    assert sum(1 for crd in crds for _ in rules_in(crd)) >= 40
