"""Whatever an experiment holds, it gets a status, and a healthy one beside it starts."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest
from support.reconciler_world import SPEC, World

from wrpo_operator.api.conditions import ConditionType
from wrpo_operator.runtime.decode import decode, encode
from wrpo_operator.runtime.resources import EXPERIMENTS

SEEDS = range(40)
TEXTS = ("", "a", "\U0001f999", "\x00", "\u2028", "a\nb", "${HOME}", "null", "on", "1e3", "x" * 5_000, "../..")
LEAVES: tuple[Any, ...] = (None, True, 0, -0.0, 1e308, -(10**30), 2**63, 0.1, [], {}, *TEXTS)
FIELDS = ("affinity", "containers", "volumes", "tolerations", "nodeSelector", "initContainers", "securityContext")


def value(rand: random.Random, depth: int) -> Any:
    if depth == 0 or rand.random() < 0.2:
        return rand.choice(LEAVES)
    if rand.random() < 0.4:
        return [value(rand, depth - 1) for _ in range(rand.randrange(3))]
    return {rand.choice((*TEXTS[:5], "name", "$patch", "env")): value(rand, depth - 1) for _ in range(3)}


def deep(rand: random.Random) -> str:
    depth = rand.choice((60, 70, 150, 210, 950, 1_500, 10_000))
    opening, closing = rand.choice((('{"a":', "}"), ("[", "]"), ('[{"":', "}]")))
    return opening * depth + "1" + closing * depth


def strange_spec(rand: random.Random) -> str:
    """Return the JSON of a spec with odd parts where a server stores anything."""
    template = {"metadata": value(rand, 3), "spec": {rand.choice(FIELDS): value(rand, 5)}}
    spec = {**SPEC, "podTemplate": template, rand.choice(("sampling", "training")): {"engineArgs": value(rand, 4)}}
    text = json.dumps(spec)
    if rand.random() < 0.5:
        text = text[:-1] + f',"podTemplate":{{"spec":{{"affinity":{deep(rand)}}}}}}}'
    if rand.random() < 0.1:
        text = text[:-1] + f',"env":[{{"name":"A","value":"{"x" * 1_400_000}"}}]}}'
    return text


@pytest.mark.parametrize("seed", SEEDS)
def test_a_strange_experiment_gets_a_status_and_a_healthy_one_beside_it_starts(
    seed: int, kube: Any, clock: Any
) -> None:
    world = World(kube, clock)
    metadata = {"name": "strange", "namespace": "other", "uid": "s", "generation": 1, "resourceVersion": "1"}
    listed = f'{{"items":[{{"metadata":{json.dumps(metadata)},"spec":{strange_spec(random.Random(seed))}}}]}}'
    (item,) = decode(listed.encode())["items"]
    world.put_experiment()
    world.store.upsert(EXPERIMENTS, kube.put(EXPERIMENTS, item))
    asyncio.run(world.reconciler.reconcile(("other", "strange")))
    world.reconcile()
    assert world.job("prepare")
    status = kube.objects[EXPERIMENTS, "other", "strange"]["status"]
    assert (status["observedGeneration"], status["phase"]) in {(1, "Invalid"), (1, "Pending")}
    assert len(status["conditions"]) == len(ConditionType)
    assert json.loads(encode(status)) == status
    if status["phase"] == "Invalid":
        assert all(entry["message"] for entry in status["conditions"])
