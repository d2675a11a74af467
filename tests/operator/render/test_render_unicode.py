"""Text of any script, in every place where a user can write it, reaches the cluster as it was written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.builders import RAW_SPEC, make_experiment, make_planned

from wrpo_devcluster.apiserver.schema.serializer import parse_yaml
from wrpo_operator.api.crd import schema
from wrpo_operator.api.parsing import SpecError, parse_spec
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.render import RenderSettings, render_attempt
from wrpo_operator.runtime.decode import encode

TEXT = "\U0001f999 \U0001d504\u200d拒 \u2028é"
Path = tuple[str | int, ...]


def free_strings(node: dict[str, Any], path: Path = ()) -> Iterator[Path]:
    """Yield the places of strings whose characters the schema does not choose, below maps and lists too."""
    if node.get("type") == "string" and not node.keys() & {"pattern", "enum", "format"}:
        yield path
    for name, child in (node.get("properties") or {}).items():
        yield from free_strings(child, (*path, name))
    if isinstance(node.get("items"), dict):
        yield from free_strings(node["items"], (*path, 0))
    if isinstance(node.get("additionalProperties"), dict):
        yield from free_strings(node["additionalProperties"], (*path, "key"))
    if node.get("x-kubernetes-preserve-unknown-fields"):
        yield (*path, "anything")


PLACES = sorted(free_strings(schema()["properties"]["spec"]), key=str)
WRITTEN: dict[str, dict[str, Any]] = {
    "environment": {"env": [{"name": "A", "value": TEXT}]},
    "system prompt": {"sampling": {"systemPrompt": TEXT}},
    "chat template": {"target": {**RAW_SPEC["target"], "chatTemplate": TEXT}},
    "column and configuration": {"prompts": {**RAW_SPEC["prompts"], "column": TEXT, "config": TEXT}},
    "annotation and key": {"podTemplate": {"metadata": {"annotations": {"example.com/a": TEXT}}}},
    "template of the pod": {"podTemplate": {"spec": {"hostAliases": [{"ip": "10.0.0.1", "hostnames": [TEXT]}]}}},
    "engine arguments": {"sampling": {"engineArgs": {TEXT: {TEXT: [TEXT]}}}},
}


def with_text(node: Any, path: Path) -> Any:
    if not path:
        return TEXT
    first, rest = path[0], path[1:]
    if isinstance(first, int):
        return [with_text(node[0] if isinstance(node, list) and node else None, rest)]
    known = node if isinstance(node, dict) else {}
    return {**known, first: with_text(known.get(first), rest)}


def arrived(spec: dict[str, Any]) -> list[Any]:
    """Return the manifests of all stages as a YAML reader of the kind that servers use reads the bodies."""
    experiment = make_experiment(**{name: value for name, value in spec.items() if name not in RAW_SPEC or value})
    assert experiment.spec is not None
    found = []
    for node in build_graph(experiment.spec):
        for manifest in render_attempt(experiment, make_planned(experiment, str(node.id)), RenderSettings()):
            body = encode(manifest)
            assert b"\\u" not in body.replace(b"\\\\u", b""), "Go's YAML readers refuse escapes of surrogate pairs"
            assert parse_yaml(body) == manifest
            found.append(manifest)
    return found


@pytest.mark.parametrize("spec", WRITTEN.values(), ids=WRITTEN.keys())
def test_text_beyond_the_basic_plane_arrives_as_written(spec: dict[str, Any]) -> None:
    texts = [text for manifest in arrived({**RAW_SPEC, **spec}) for text in strings(manifest)]
    assert any(TEXT in text or _in_json(TEXT) in text for text in texts)


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def _in_json(text: str) -> str:
    """The text inside the stage's configuration, which is JSON in a ConfigMap."""
    return json.dumps(text)[1:-1]


def test_every_free_string_of_the_schema_is_rendered_or_refused_by_name() -> None:
    assert len(PLACES) > 15
    refusals = [refusal_of(with_text(RAW_SPEC, path)) for path in PLACES]
    assert [text for text in refusals if text is not None and not text.startswith("spec")] == []
    assert refusals.count(None) > 5


def refusal_of(spec: dict[str, Any]) -> str | None:
    """Return why a spec is refused; None for one that is rendered."""
    try:
        parse_spec(spec)
    except SpecError as error:
        return str(error.errors[0])
    arrived(spec)
    return None
