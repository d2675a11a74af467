"""The CRD: generated, structural, bounded, small."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cel
import kubernetes_validate
import pytest
from support.crd_validation import apply_defaults, crd_schema, holds

from wrpo_operator.api import crd as crd_module
from wrpo_operator.api import reference as reference_module
from wrpo_operator.api.crd import HEADER, crd, schema
from wrpo_operator.api.reference import reference
from wrpo_operator.api.yamlio import dump, load

ROOT = Path(__file__).parents[3]
KNOWN = {
    "type", "format", "description", "default", "enum", "pattern", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "minLength", "maxLength", "minItems", "maxItems", "maxProperties", "properties", "required",
    "items", "additionalProperties", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-validations",
    "x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string", "anyOf",
}  # fmt: skip


def nodes(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, field in node.get("properties", {}).items():
        yield from nodes(field, f"{path}.{name}")
    if "items" in node:
        yield from nodes(node["items"], f"{path}[]")
    if "additionalProperties" in node:
        yield from nodes(node["additionalProperties"], f"{path}{{}}")


def all_nodes() -> list[tuple[str, dict[str, Any]]]:
    properties = schema()["properties"]
    return [*nodes(properties["spec"], "spec"), *nodes(properties["status"], "status")]


def test_the_written_crd_is_what_the_models_say() -> None:
    written = (ROOT / crd_module.PATH).read_text()
    assert written == HEADER + dump(crd()), "run `python -m wrpo_operator.api.crd --write`"


def test_the_written_reference_is_what_the_models_say() -> None:
    written = (ROOT / reference_module.PATH).read_text()
    assert written == reference(), "run `python -m wrpo_operator.api.reference --write`"


def test_printing_gives_the_written_file() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "wrpo_operator.api.crd"],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": f"{ROOT}:{ROOT}/operator"},
    )  # fmt: skip
    assert run.stdout == (ROOT / crd_module.PATH).read_text()


def test_the_crd_is_a_valid_kubernetes_object() -> None:
    kubernetes_validate.validate(crd(), "1.37.0", strict=True)


def test_kubectl_apply_can_annotate_the_crd() -> None:
    """It keeps the whole object in an annotation, which has at most 256 KiB."""
    assert len(json.dumps(crd(), separators=(",", ":")).encode()) < 200_000


def test_the_schema_uses_only_keywords_of_structural_schemas() -> None:
    unknown = {(path, key) for path, node in all_nodes() for key in node if key not in KNOWN}
    assert unknown == set()


def test_every_value_has_one_type() -> None:
    untyped = [path for path, node in all_nodes() if "type" not in node and "x-kubernetes-int-or-string" not in node]
    mixed = [path for path, node in all_nodes() if "anyOf" in node and "x-kubernetes-int-or-string" not in node]
    assert (untyped, mixed) == ([], [])


def test_every_field_is_described() -> None:
    bare = [path for path, node in all_nodes() if not path.endswith(("[]", "{}")) and not node.get("description")]
    assert bare == []


def test_every_string_list_map_and_number_of_the_spec_is_bounded() -> None:
    bounds = {"string": ("maxLength", "enum"), "array": ("maxItems",), "integer": ("maximum", "enum"),
              "number": ("maximum",)}  # fmt: skip
    unbounded = [
        path
        for path, node in all_nodes()
        if path.startswith("spec")
        and not path.endswith("{}")
        and (
            not any(bound in node for bound in bounds.get(node.get("type", ""), ("type", "maxLength")))
            or ("additionalProperties" in node and "maxProperties" not in node)
        )
    ]
    assert unbounded == []


def test_no_field_has_a_name_that_yaml_reads_as_a_boolean() -> None:
    names = {path.rsplit(".", 1)[-1].rstrip("[]{}").lower() for path, _ in all_nodes()}
    assert names & {"n", "y", "on", "off", "yes", "no", "true", "false", "null"} == set()


def test_a_default_is_already_complete() -> None:
    """The API server checks CEL rules against a default as it stands, before nested defaults are filled in."""
    for path, node in all_nodes():
        for name, field in node.get("properties", {}).items():
            if isinstance(field.get("default"), dict):
                default = field["default"]
                assert apply_defaults(dict(default), field) == default, f"{path}.{name}"
                for rule in field.get("x-kubernetes-validations", ()):
                    assert holds(rule["rule"], default), rule


def test_every_rule_compiles() -> None:
    rules = [rule["rule"] for _, node in all_nodes() for rule in node.get("x-kubernetes-validations", ())]
    assert len(rules) >= 20
    for rule in rules:
        cel.compile(rule)


def test_rules_use_no_extension_library_of_kubernetes() -> None:
    rules = " ".join(rule["rule"] for _, node in all_nodes() for rule in node.get("x-kubernetes-validations", ()))
    for function in ("find(", "isURL(", "url(", "quantity(", "isSorted(", "sum(", "indexOf(", "lowerAscii(", "?."):
        assert function not in rules


def test_rule_messages_are_one_short_sentence() -> None:
    for _, node in all_nodes():
        for rule in node.get("x-kubernetes-validations", ()):
            assert len(rule["message"]) <= 200
            assert "\n" not in rule["message"]


def test_the_status_holds_no_defaults() -> None:
    assert [path for path, node in all_nodes() if path.startswith("status") and "default" in node] == []


def test_status_lists_are_maps_by_their_names() -> None:
    lists = {path: node.get("x-kubernetes-list-map-keys") for path, node in all_nodes() if node.get("type") == "array"}
    assert lists["status.conditions"] == ["type"]
    assert lists["status.stages"] == ["name"]
    assert lists["status.stages[].attempts"] == ["number"]
    assert lists["spec.sources"] == ["name"]


def test_columns_and_names() -> None:
    version = crd()["spec"]["versions"][0]
    columns = {column["name"]: column.get("priority", 0) for column in version["additionalPrinterColumns"]}
    assert columns == {"Phase": 0, "Stage": 0, "Progress": 0, "Age": 0,
                       "Objective": 1, "Sources": 1, "Reason": 1, "Queue": 1}  # fmt: skip
    assert crd()["spec"]["names"]["shortNames"] == ["wrpo", "wrpos"]
    assert version["subresources"] == {"status": {}}


def test_columns_point_at_fields_that_exist() -> None:
    known = {f".{path}" for path, _ in all_nodes()} | {".metadata.creationTimestamp"}
    for column in crd()["spec"]["versions"][0]["additionalPrinterColumns"]:
        assert column["jsonPath"] in known


YAML_NUMBERS = {
    "exponent without point": ("3e-7", 3e-7),
    "exponent with point": ("1.0E+3", 1000.0),
    "plain": ("0.1", 0.1),
    "integer": ("5", 5),
    "a commit of digits and e": ("12e5x", "12e5x"),
    "a date stays text": ("2026-01-01", "2026-01-01"),
}


@pytest.mark.parametrize(("text", "value"), YAML_NUMBERS.values(), ids=YAML_NUMBERS.keys())
def test_yaml_is_read_as_kubectl_reads_it(text: str, value: Any) -> None:
    assert load(f"value: {text}") == {"value": value}


def test_the_schema_used_by_tests_is_the_generated_one() -> None:
    assert crd_schema() == schema()
