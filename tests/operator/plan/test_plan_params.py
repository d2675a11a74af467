"""No field of the spec is idle: each changes a stage's configuration, a manifest, or what the planner decides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain, islice
from typing import Any

import pytest
from support.builders import raw_spec
from support.spec_leaves import JsonObject, Leaf, changed, leaves, manifests_of, plans_of

from wrpo_operator.api.spec import ExperimentSpec, parse_spec

LORA = {"lora": {}, "holdout": {}}
SOURCE = {"name": "qwen", "model": "Qwen/Qwen2-72B-Instruct", "revision": "main"}
BUCKET = {"uri": "s3://bucket/wrpo", "endpoint": "https://s3.example.org", "credentialsSecretName": "s3"}
BASES: dict[str, JsonObject] = {
    "as short as can be": raw_spec(),
    "everything that has parts": raw_spec(
        sources=[SOURCE, {"name": "yi", "model": "01-ai/Yi-1.5-34B-Chat"}],
        reward={"additional": [{"name": "second", "model": "org/second", "revision": "main"}]},
        env=[{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}}],
        imagePullSecrets=[{"name": "pull"}],
        scheduling={"tolerations": [{"key": "gpu", "value": "h100"}], "queueName": "gpus"},
        sft=LORA,
        training=LORA,
        modelCache={"enabled": True},
    ),
    "rewards by endpoints": raw_spec(
        reward={
            "model": None,
            "endpoint": "http://rewards.ml:8000/v1",
            "endpointModel": "rm",
            "apiKeySecretRef": {"name": "rewards", "key": "token"},
            "additional": [{"name": "second", "endpoint": "http://rewards.ml:8000/v1"}],
        },
    ),
    "rewards by functions": raw_spec(
        reward={"model": None, "function": "mine:reward", "additional": [{"name": "second", "function": "mine:other"}]}
    ),
    "rewards from directories": raw_spec(
        reward={"model": "/models/rm", "additional": [{"name": "second", "model": "/models/second"}]},
        target={"model": "/models/target"},
        sources=[{"name": "qwen", "model": "/models/qwen"}],
    ),
    "SimPO": raw_spec(training={"objective": "SimPO"}),
    "IPO": raw_spec(training={"objective": "WRPO-IPO"}),
    "a bucket": raw_spec(storage={"volume": None, "s3": BUCKET}),
    "gangs": raw_spec(training={"nodes": 2, "gpusPerNode": 4}, scheduling={"gang": "BestEffort"}),
    "a pod group": raw_spec(training={"nodes": 2}, scheduling={"podGroup": "Volcano"}),
    "a plain variable": raw_spec(env=[{"name": "HF_HOME", "value": "/cache"}]),
    "every taint": raw_spec(scheduling={"tolerations": [{"operator": "Exists"}]}),
    "a tainted key": raw_spec(scheduling={"tolerations": [{"key": "gpu"}]}),
    "no retries": raw_spec(retries={"limit": 0}),
}
"""Specs in which each field can take effect. A field that is idle in all of them needs one more, if it is not idle."""

PLANNED = ("as short as can be", "no retries")
"""Those in which the planner is asked as well."""

LEAVES = list(leaves())


@cache
def manifests_before(base: str) -> Any:
    return manifests_of(parse_spec(BASES[base]))


@cache
def plans_before(base: str) -> Any:
    return plans_of(parse_spec(BASES[base]))


def specs_with(leaf: Leaf, bases: Iterable[str] = BASES) -> Iterator[tuple[str, ExperimentSpec]]:
    """Yield bases and the same with another value in one leaf, a few values for each base."""
    return ((base, spec) for base in bases for spec in islice(changed(BASES[base], leaf), 3))


def effect_of(leaf: Leaf) -> tuple[str, ExperimentSpec] | None:
    """Return a base and a change of one leaf that changes anything that is applied or decided."""
    assert next(specs_with(leaf), None), f"{leaf}: no other valid value is known; add to TEXTS, OBJECTS or BASES"
    applied = (found for found in specs_with(leaf) if manifests_of(found[1]) != manifests_before(found[0]))
    decided = (found for found in specs_with(leaf, PLANNED) if plans_of(found[1]) != plans_before(found[0]))
    return next(chain(applied, decided), None)


@pytest.mark.parametrize("leaf", LEAVES, ids=str)
def test_a_field_of_the_spec_takes_effect(leaf: Leaf) -> None:
    assert effect_of(leaf), f"{leaf} has no effect: nothing that the operator applies or decides depends on it"
