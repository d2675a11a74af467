"""Inventory of a Kueue queue: quotas, borrowing, flavors with and without readable nodes."""

from __future__ import annotations

from typing import Any

import pytest
from test_sizing_nodes import H100, inventory, node

from wrpo_operator.sizing.catalogue import known_facts
from wrpo_operator.sizing.flavors import QueueObjects, names_of, queue_inventory
from wrpo_operator.sizing.generation import place_generation
from wrpo_operator.sizing.inventory import Inventory
from wrpo_operator.sizing.offers import node_fact
from wrpo_operator.sizing.profiles import parse_profiles
from wrpo_operator.sizing.requests import DoesNotFit, GenerationRequest
from wrpo_operator.sizing.selection import Selection, Tolerated

JsonObject = dict[str, Any]
GPU = "nvidia.com/gpu"
POOL = {"pool": "h100"}


def quota(flavor: str, nominal: int | str, resource: str = GPU, **limits: int) -> JsonObject:
    entries = [{"name": resource, "nominalQuota": nominal, **limits}, {"name": "cpu", "nominalQuota": "100"}]
    return {"name": flavor, "resources": entries}


def holder(name: str, *flavors: JsonObject, **spec: Any) -> JsonObject:
    """Return a ClusterQueue or a Cohort."""
    groups = [{"coveredResources": [GPU, "cpu"], "flavors": list(flavors)}]
    return {"metadata": {"name": name}, "spec": {"resourceGroups": groups, **spec}}


def flavor(name: str, labels: JsonObject | None = None, **spec: Any) -> JsonObject:
    return {"metadata": {"name": name}, "spec": {"nodeLabels": POOL if labels is None else labels, **spec}}


def ask(
    own: JsonObject,
    *others: JsonObject,
    flavors: tuple[JsonObject, ...] = (flavor("h100"),),
    cohorts: tuple[JsonObject, ...] = (),
    nodes: tuple[JsonObject, ...] | None = None,
    profiles: list[JsonObject] | None = None,
    selection: Selection | None = None,
) -> Inventory:
    objects = QueueObjects(
        queue="team-a",
        cluster_queue=own["metadata"]["name"],
        cluster_queues=names_of([own, *others]),
        cohorts=names_of(cohorts),
        flavors=names_of(flavors),
    )
    facts = None if nodes is None else [fact for each in nodes if (fact := node_fact(each)) is not None]
    found = queue_inventory(objects, facts, selection or Selection(), parse_profiles(profiles or []))
    assert found is not None
    return found


H100_NODES = (node("a", {**H100, **POOL}), node("b", {**H100, **POOL}), node("other", {**H100, "pool": "x"}))


def test_a_flavor_has_the_accelerators_of_its_nodes_and_the_quota_of_the_queue() -> None:
    found = ask(holder("cq", quota("h100", 12)), nodes=H100_NODES)
    (group,) = found.groups
    assert (group.name, group.memory_mib, group.per_node, group.nodes) == ("NVIDIA-H100-80GB-HBM3", 81559, 8, 2)
    assert (group.quota, group.total) == (12, 12)
    assert group.labels == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", **POOL}
    assert (found.source, found.faults) == ("queue team-a", ())


@pytest.mark.parametrize(
    ("own", "others", "cohorts", "granted"),
    [
        pytest.param(holder("cq", quota("h100", "8")), (), (), 8, id="a queue alone"),
        pytest.param(
            holder("cq", quota("h100", 8), cohort="c"),
            (holder("two", quota("h100", 16), cohort="c"), holder("alone", quota("h100", 99))),
            (),
            24,
            id="a cohort lends all",
        ),
        pytest.param(
            holder("cq", quota("h100", 8), cohortName="c"),
            (holder("two", quota("h100", 16, lendingLimit=4), cohortName="c"),),
            (),
            12,
            id="a lending limit",
        ),
        pytest.param(
            holder("cq", quota("h100", 8, borrowingLimit=2), cohort="c"),
            (holder("two", quota("h100", 16), cohort="c"),),
            (),
            10,
            id="a borrowing limit",
        ),
        pytest.param(
            holder("cq", quota("h100", 0), cohort="c"),
            (holder("two", quota("other", 16), cohort="c"), holder("three", quota("h100", 3), cohort="c")),
            (),
            3,
            id="nothing but what is borrowed, of its own flavor",
        ),
        pytest.param(
            holder("cq", quota("h100", 8), cohort="leaf"),
            (holder("two", quota("h100", 1), cohort="other-leaf"),),
            (
                holder("leaf", parentName="root"),
                holder("other-leaf", parentName="root"),
                holder("root", quota("h100", 4)),
                holder("stranger", quota("h100", 50)),
            ),
            13,
            id="a tree of cohorts",
        ),
        pytest.param(
            holder("cq", quota("h100", 8), cohort="a"),
            (),
            (holder("a", parentName="b"), holder("b", parentName="a")),
            8,
            id="a circle of cohorts",
        ),
    ],
)
def test_the_quota_is_what_the_queue_has_and_may_borrow(
    own: JsonObject, others: tuple[JsonObject, ...], cohorts: tuple[JsonObject, ...], granted: int
) -> None:
    found = ask(own, *others, cohorts=cohorts, nodes=(node("a", {**H100, **POOL}),))
    assert [group.quota for group in found.groups] == [granted]


def test_a_quota_smaller_than_one_node_is_said() -> None:
    found = ask(holder("cq", quota("h100", 2)), nodes=H100_NODES)
    assert [group.quota for group in found.groups] == [2]
    (fault,) = found.faults
    assert fault == (
        "ClusterQueue cq, flavor h100 grants 2 nvidia.com/gpu, fewer than the 8 of one node, so no pod gets more than "
        "2. Raise the quota for larger pods."
    )


NO_SIZE = (
    "ClusterQueue cq, flavor h100: neither nodes nor its labels show the size of nvidia.com/gpu. Add a profile named "
    "h100: describe them in accelerators.profiles of the chart's values."
)


@pytest.mark.parametrize(
    ("own", "flavors", "fault"),
    [
        pytest.param(
            holder("cq", quota("h100", 0)),
            (flavor("h100"),),
            "ClusterQueue cq, flavor h100 grants no nvidia.com/gpu: its nominalQuota is 0 and it cannot borrow. "
            "Raise it.",
            id="no quota",
        ),
        pytest.param(
            holder("cq", quota("h100", 8)),
            (),
            "ClusterQueue cq, flavor h100: the ResourceFlavor does not exist. Create it.",
            id="no flavor",
        ),
        pytest.param(
            holder("cq", quota("h100", 8)),
            (flavor("h100", nodeTaints=[{"key": "team", "value": "b", "effect": "NoSchedule"}]),),
            "ClusterQueue cq, flavor h100: it has the taint team=b:NoSchedule, which the experiment does not tolerate. "
            "Add a toleration.",
            id="a taint",
        ),
        pytest.param(holder("cq", quota("h100", 8)), (flavor("h100"),), NO_SIZE, id="no size"),
        pytest.param(
            holder("cq"),
            (flavor("h100"),),
            "ClusterQueue cq covers no accelerators. Add one to its resourceGroups.",
            id="no accelerators",
        ),
    ],
)
def test_a_flavor_that_cannot_be_used_is_named(own: JsonObject, flavors: tuple[JsonObject, ...], fault: str) -> None:
    found = ask(own, flavors=flavors)
    assert (found.groups, found.faults) == ((), (fault,))


def test_nodes_of_a_flavor_that_cannot_be_used_are_named() -> None:
    found = ask(holder("cq", quota("h100", 8)), nodes=(node("a", {**H100, **POOL}, ready="False"),))
    assert found.groups == ()
    assert found.faults == (
        "ClusterQueue cq, flavor h100: Node a with nvidia.com/gpu is not Ready. `kubectl describe node` shows why.",
    )


def test_labels_of_a_flavor_tell_the_size_where_nodes_are_not_read() -> None:
    labels = {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb", "cloud.google.com/gke-accelerator-count": "8"}
    found = ask(holder("cq", quota("h100", 16)), flavors=(flavor("h100", labels),))
    (group,) = found.groups
    assert (group.name, group.memory_mib, group.per_node, group.nodes) == ("nvidia-h100-80gb", 81251, 8, None)
    assert (group.total, group.labels) == (16, labels)


@pytest.mark.parametrize("nodes", [None, ()])
def test_a_profile_with_the_name_of_the_flavor_tells_the_size(nodes: tuple[JsonObject, ...] | None) -> None:
    profiles = [
        {"name": "x", "memoryGiB": 1, "perNode": 1},
        {"name": "h100", "memoryGiB": 80, "perNode": 8, "price": 2},
    ]
    (group,) = ask(holder("cq", quota("h100", 16)), nodes=nodes, profiles=profiles).groups
    assert (group.name, group.memory_mib, group.per_node, group.quota) == ("h100", 81920, 8, 16)
    assert (group.labels, group.price_per_hour) == (POOL, 2.0)


def test_tolerations_of_a_flavor_and_of_the_experiment_cover_its_taints() -> None:
    taint = {"key": "team", "value": "b", "effect": "NoSchedule"}
    tainted = (node("a", {**H100, **POOL}, taints=[taint]),)
    own = holder("cq", quota("h100", 8))
    by_flavor = flavor("h100", nodeTaints=[taint], tolerations=[{"key": "team", "operator": "Exists"}])
    assert ask(own, flavors=(by_flavor,), nodes=tainted).groups
    selection = Selection(tolerations=(Tolerated("team", "Exists"),))
    assert ask(own, flavors=(flavor("h100", nodeTaints=[taint]),), nodes=tainted, selection=selection).groups


def test_each_flavor_is_a_group() -> None:
    slices = "nvidia.com/mig-1g.10gb"
    found = ask(
        holder("cq", quota("h100", 8), quota("parts", 14, slices)),
        flavors=(flavor("h100"), flavor("parts", {"pool": "parts"})),
        nodes=(*H100_NODES, node("m", {"pool": "parts"}, {slices: "7"})),
    )
    assert [(g.resource, g.quota, g.is_slice) for g in found.groups] == [(GPU, 8, False), (slices, 14, True)]


def test_a_missing_cluster_queue_gives_no_inventory() -> None:
    assert queue_inventory(QueueObjects(queue="q", cluster_queue="cq"), None, Selection()) is None


def refused(found: Inventory) -> str:
    """Return why a 72B model gets no accelerators."""
    known = known_facts("Qwen/Qwen2-72B-Instruct")
    assert known is not None
    answer = place_generation(GenerationRequest(facts=known.facts), found)
    assert isinstance(answer, DoesNotFit)
    return answer.message


@pytest.mark.parametrize(
    ("found", "parts"),
    [
        pytest.param(
            inventory(node("a", {})),
            ("without the label nvidia.com/gpu.memory", "Install GPU feature discovery", "accelerators.profiles"),
            id="nodes without labels",
        ),
        pytest.param(
            inventory(node("a", ready="Unknown")),
            ("Node a with nvidia.com/gpu is not Ready",),
            id="a node that vanished",
        ),
        pytest.param(
            inventory(node("a", {}, {"nvidia.com/mig-1g.10gb": "7"})),
            ("the largest pod can have 1 x nvidia.com/mig-1g.10gb of 8.8 GiB",),
            id="MIG: one slice in a pod",
        ),
        pytest.param(
            inventory(node("a"), node("b", {**H100, "nvidia.com/gpu.product": "NVIDIA-L4"}, {"nvidia.com/gpu": "1"}),
                      selection=Selection(labels=(("nvidia.com/gpu.product", "NVIDIA-L4"),))),
            ("the largest pod can have 1 x NVIDIA-L4",),
            id="mixed products, of which the experiment selects the smaller",
        ),
        pytest.param(
            ask(holder("cq", quota("h100", 2)), nodes=H100_NODES),
            ("needs 4 x NVIDIA-H100", "grants 2 nvidia.com/gpu, fewer than the 8 of one node", "queue team-a"),
            id="a quota smaller than one pod",
        ),
    ],
)  # fmt: skip
def test_a_model_that_does_not_fit_names_what_is_wrong_with_the_cluster(
    found: Inventory, parts: tuple[str, ...]
) -> None:
    message = refused(found)
    assert [part for part in parts if part not in message] == [], message
