"""Inventory of nodes: labels as vendors and clouds write them, and what is said about nodes that are not used."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrpo_operator.api.parsing import parse_spec
from wrpo_operator.sizing.inventory import Inventory
from wrpo_operator.sizing.nodes import node_inventory
from wrpo_operator.sizing.offers import node_fact
from wrpo_operator.sizing.profiles import parse_profiles
from wrpo_operator.sizing.selection import Selection, Tolerated, selection_of

JsonObject = dict[str, Any]
ANYWHERE = Selection()
H100: JsonObject = {
    "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
    "nvidia.com/gpu.memory": "81559",
    "nvidia.com/gpu.count": "8",
    "nvidia.com/gpu.replicas": "1",
    "nvidia.com/gpu.compute.major": "9",
    "nvidia.com/gpu.compute.minor": "0",
}
MINIMAL = {
    "target": {"model": "org/target"},
    "sources": [{"name": "a", "model": "org/a"}],
    "prompts": {"dataset": "org/prompts"},
    "reward": {"model": "org/reward"},
    "storage": {"volume": {"claimName": "artifacts"}},
}


def node(
    name: str = "n1",
    labels: JsonObject | None = None,
    allocatable: JsonObject | None = None,
    *,
    ready: str = "True",
    taints: list[JsonObject] | None = None,
    cordoned: bool = False,
    capacity: JsonObject | None = None,
) -> JsonObject:
    """Return a Node object; an H100 node unless labels or resources are given."""
    amounts = {"nvidia.com/gpu": "8"} if allocatable is None else allocatable
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(H100 if labels is None else labels)}},
        "spec": {"taints": taints or [], **({"unschedulable": True} if cordoned else {})},
        "status": {
            "allocatable": {"cpu": "32", "memory": "128Gi", **amounts},
            "capacity": {"cpu": "32", "memory": "128Gi", **(amounts if capacity is None else capacity)},
            "conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready}],
        },
    }


def inventory(
    *nodes: JsonObject, selection: Selection = ANYWHERE, profiles: Any = (), prices: dict[str, float] | None = None
) -> Inventory:
    known = parse_profiles(list(profiles))
    facts = [node_fact(each, [profile.resource for profile in known]) for each in nodes]
    found = [fact for fact in facts if fact is not None]
    return node_inventory(found, selection, known, prices, num_nodes=len(nodes))


def shape(found: Inventory) -> list[tuple[Any, ...]]:
    return [(g.name, g.resource, g.memory_mib, g.per_node, g.nodes, g.is_slice) for g in found.groups]


def test_nodes_of_one_product_are_one_group_that_its_label_selects() -> None:
    found = inventory(node("a"), node("b"), node("cpu", {}, {}), prices={"nvidia-h100-80gb-hbm3": 2.5})
    (group,) = found.groups
    assert shape(found) == [("NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu", 81559, 8, 2, False)]
    assert (group.total, group.quota, group.price_per_hour) == (16, None, 2.5)
    assert (dict(group.labels), group.compute_capability) == ({"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}, 9.0)
    assert (found.source, found.faults) == ("the labels of 2 nodes", ())


def test_a_cluster_without_accelerators_has_an_empty_inventory() -> None:
    found = inventory(node("a", {}, {}), node("b", {}, {}), node("c", {}, {}))
    assert (found.groups, found.source, found.faults) == ((), "the labels of 3 nodes", ())


def test_mixed_products_are_groups_of_their_own() -> None:
    l40s = {"nvidia.com/gpu.product": "NVIDIA-L40S", "nvidia.com/gpu.memory": "46068"}
    found = inventory(node("a"), node("b", l40s, {"nvidia.com/gpu": "4"}), node("c", l40s, {"nvidia.com/gpu": "4"}))
    assert shape(found) == [
        ("NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu", 81559, 8, 1, False),
        ("NVIDIA-L40S", "nvidia.com/gpu", 46068, 4, 2, False),
    ]


def test_the_allocatable_amount_counts_not_the_label() -> None:
    found = inventory(node("a", allocatable={"nvidia.com/gpu": 6}, capacity={"nvidia.com/gpu": "8"}), node("b"))
    (group,) = found.groups
    assert (group.per_node, group.nodes, group.total) == (8, 2, 14)


def test_drivers_that_report_slightly_different_memory_do_not_split_a_product() -> None:
    found = inventory(node("a", {**H100, "nvidia.com/gpu.memory": "81251"}), node("b"))
    assert [(g.memory_mib, g.nodes) for g in found.groups] == [(81251, 2)]


def test_one_product_name_with_two_sizes_is_told_apart_by_the_label_of_the_memory() -> None:
    found = inventory(node("a", {**H100, "nvidia.com/gpu.memory": "40960"}), node("b"))
    assert [(g.memory_mib, g.labels["nvidia.com/gpu.memory"]) for g in found.groups] == [
        (40960, "40960"),
        (81559, "81559"),
    ]


MIG_PRODUCT = "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb"


@pytest.mark.parametrize(
    ("labels", "allocatable", "expected"),
    [
        pytest.param(
            {"nvidia.com/mig-1g.10gb.product": MIG_PRODUCT, "nvidia.com/mig-1g.10gb.memory": "9728"},
            {"nvidia.com/mig-1g.10gb": "7", "nvidia.com/gpu": "0"},
            (MIG_PRODUCT, "nvidia.com/mig-1g.10gb", 9728, 7, True),
            id="MIG of the strategy mixed, by its labels",
        ),
        pytest.param(
            {"nvidia.com/gpu.product": "NVIDIA-A100"},
            {"nvidia.com/mig-3g.40gb": "2"},
            ("NVIDIA-A100", "nvidia.com/mig-3g.40gb", 35840, 2, True),
            id="MIG without labels, by its name, which is rounded up",
        ),
        pytest.param(
            {"nvidia.com/gpu.product": MIG_PRODUCT, "nvidia.com/gpu.memory": "9728"},
            {"nvidia.com/gpu": "56"},
            (MIG_PRODUCT, "nvidia.com/gpu", 9728, 56, True),
            id="MIG of the strategy single",
        ),
        pytest.param(
            {
                "nvidia.com/gpu.product": "Tesla-T4-SHARED",
                "nvidia.com/gpu.memory": "15360",
                "nvidia.com/gpu.replicas": "4",
            },
            {"nvidia.com/gpu": "4"},
            ("Tesla-T4-SHARED", "nvidia.com/gpu", 3840, 4, True),
            id="time-slicing: a share of the memory, and no second one for the same pod",
        ),
        pytest.param(
            {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM", "amd.com/gpu.vram": "192G"},
            {"amd.com/gpu": "8"},
            ("AMD_Instinct_MI300X_OAM", "amd.com/gpu", 196608, 8, False),
            id="AMD",
        ),
        pytest.param(
            {"beta.amd.com/gpu.product-name": "AMD_Instinct_MI210", "beta.amd.com/gpu.vram": "64G"},
            {"amd.com/gpu": "4"},
            ("AMD_Instinct_MI210", "amd.com/gpu", 65536, 4, False),
            id="AMD, beta labels",
        ),
        pytest.param(
            {"beta.amd.com/gpu.vram.16G": "1", "beta.amd.com/gpu.product-name.Vega": "1"},
            {"amd.com/gpu": "1"},
            ("Vega", "amd.com/gpu", 16384, 1, False),
            id="AMD, old labels with the value in the name",
        ),
        pytest.param(
            {"gpu.intel.com/product": "Max_1550"},
            {"gpu.intel.com/i915": "2", "gpu.intel.com/i915_monitoring": "1", "gpu.intel.com/memory.max": "128"},
            ("Max_1550", "gpu.intel.com/i915", 131072, 2, False),
            id="Intel: devices only",
        ),
        pytest.param(
            {"gpu.intel.com/product": "Flex_170"},
            {"gpu.intel.com/xe": "3"},
            ("Flex_170", "gpu.intel.com/xe", 14336, 3, False),
            id="Intel with the xe driver",
        ),
        pytest.param(
            {"cloud.google.com/gke-accelerator": "nvidia-l4"},
            {"nvidia.com/gpu": "2"},
            ("nvidia-l4", "nvidia.com/gpu", 22731, 2, False),
            id="GKE",
        ),
        pytest.param(
            {
                "cloud.google.com/gke-accelerator": "nvidia-tesla-a100",
                "cloud.google.com/gke-gpu-partition-size": "1g.5gb",
            },
            {"nvidia.com/gpu": "7"},
            ("nvidia-tesla-a100", "nvidia.com/gpu", 4480, 7, True),
            id="GKE with partitions",
        ),
        pytest.param(
            {"karpenter.k8s.aws/instance-gpu-name": "h100", "karpenter.k8s.aws/instance-gpu-memory": "81920"},
            {"nvidia.com/gpu": "8"},
            ("h100", "nvidia.com/gpu", 81920, 8, False),
            id="Karpenter",
        ),
        pytest.param(
            {"nvidia.com/gpu.product": "NVIDIA-H200", "nvidia.com/gpu.memory": "unknown"},
            {"nvidia.com/gpu": "8"},
            ("NVIDIA-H200", "nvidia.com/gpu", 143771, 8, False),
            id="a product whose label of memory is no number",
        ),
    ],
)
def test_labels_of_every_vendor_tell_the_size(
    labels: JsonObject, allocatable: JsonObject, expected: tuple[Any, ...]
) -> None:
    found = inventory(node("a", labels, allocatable))
    (group,) = found.groups
    assert (group.name, group.resource, group.memory_mib, group.per_node, group.is_slice) == expected
    assert found.faults == ()
    assert group.labels
    assert set(group.labels.items()) <= set(labels.items())


def test_a_node_with_whole_devices_and_slices_offers_both() -> None:
    found = inventory(node("a", H100, {"nvidia.com/gpu": "4", "nvidia.com/mig-1g.10gb": "28"}))
    assert [(g.resource, g.per_node, g.is_slice) for g in found.groups] == [
        ("nvidia.com/gpu", 4, False),
        ("nvidia.com/mig-1g.10gb", 28, True),
    ]


NO_LABELS = (
    "Nodes a and b offer nvidia.com/gpu without the label nvidia.com/gpu.memory, so its memory is unknown. Install GPU "
    "feature discovery (part of NVIDIA's GPU operator), or describe them in accelerators.profiles of the chart's "
    "values."
)
NO_NUMBER = (
    "Node a offers nvidia.com/gpu with nvidia.com/gpu.memory=much, which is no known size, so its memory is unknown. "
    "Install GPU feature discovery (part of NVIDIA's GPU operator), or describe them in accelerators.profiles of the "
    "chart's values."
)
OTHER_UNIT = NO_NUMBER.replace("=much", "=80Gi")
TOO_SMALL = NO_NUMBER.replace("=much", "=80")
NOT_READY = "Node a with nvidia.com/gpu is not Ready. `kubectl describe node` shows why."
CORDONED = "Nodes a and b with nvidia.com/gpu are cordoned. `kubectl uncordon` makes nodes schedulable."
TAINTED = (
    "Node a with nvidia.com/gpu has the taint team=b:NoSchedule, which the experiment does not tolerate. Tolerate it "
    "in spec.scheduling.tolerations to use it."
)
UNHEALTHY = "Node a has nvidia.com/gpu, of which none is allocatable. Check the pods of the device plugin on it."
NO_PLUGIN = (
    "Node a has the label nvidia.com/gpu.present but offers no nvidia.com/gpu. Install its device plugin. Devices that "
    "are allocated by ResourceClaims (DRA) are not sized: set the stages' resources."
)
GAUDI = (
    "Node a offers habana.ai/gaudi, whose memory no label states. To use it, describe them in accelerators.profiles of "
    "the chart's values."
)


@pytest.mark.parametrize(
    ("nodes", "fault"),
    [
        pytest.param([node("a", {}), node("b", {})], NO_LABELS, id="nodes without labels"),
        pytest.param([node("a", {"nvidia.com/gpu.memory": "much"})], NO_NUMBER, id="a label that is no number"),
        pytest.param([node("a", {"nvidia.com/gpu.memory": "80Gi"})], OTHER_UNIT, id="a label in another unit"),
        pytest.param([node("a", {"nvidia.com/gpu.memory": "80"})], TOO_SMALL, id="a label of GiB"),
        pytest.param([node("a", ready="Unknown")], NOT_READY, id="a node that vanishes"),
        pytest.param([node("a", cordoned=True), node("b", cordoned=True)], CORDONED, id="cordoned nodes"),
        pytest.param([node("a", taints=[{"key": "team", "value": "b", "effect": "NoSchedule"}])], TAINTED, id="taint"),
        pytest.param(
            [node("a", allocatable={"nvidia.com/gpu": "0"}, capacity={"nvidia.com/gpu": "8"})], UNHEALTHY, id="broken"
        ),
        pytest.param([node("a", {"nvidia.com/gpu.present": "true"}, {})], NO_PLUGIN, id="no device plugin"),
        pytest.param([node("a", {}, {"habana.ai/gaudi": "8"})], GAUDI, id="another accelerator"),
    ],
)
def test_accelerators_that_cannot_be_used_are_named_with_the_remedy(nodes: list[JsonObject], fault: str) -> None:
    assert inventory(*nodes).groups == ()
    assert inventory(*nodes).faults == (fault,)
    mixed = inventory(*nodes, node("good"))
    assert (shape(mixed), mixed.faults) == ([("NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu", 81559, 8, 1, False)], (fault,))


def test_many_nodes_are_counted_in_a_message() -> None:
    found = inventory(*[node(f"n{number}", {}) for number in range(9)])
    assert found.faults[0].startswith("Nodes n0, n1, n2 and 6 more offer nvidia.com/gpu without the label")


@pytest.mark.parametrize("effect", ["NoSchedule", "NoExecute", "PreferNoSchedule"])
def test_the_usual_taint_of_nodes_with_accelerators_is_tolerated(effect: str) -> None:
    taints = [{"key": "nvidia.com/gpu", "value": "present", "effect": effect}]
    assert inventory(node("a", taints=taints)).groups
    assert inventory(node("a", {}, {"nvidia.com/mig-1g.5gb": "7"}, taints=taints)).groups


def test_another_vendors_taint_is_not_tolerated() -> None:
    assert not inventory(node("a", taints=[{"key": "amd.com/gpu", "effect": "NoSchedule"}])).groups


@pytest.mark.parametrize(
    ("toleration", "is_used"),
    [
        (Tolerated("team", "Equal", "b"), True),
        (Tolerated("team", "Exists"), True),
        (Tolerated(operator="Exists"), True),
        (Tolerated("team", "Exists", effect="NoSchedule"), True),
        (Tolerated("team", "Exists", effect="NoExecute"), False),
        (Tolerated("team", "Equal", "c"), False),
        (Tolerated("other", "Exists"), False),
    ],
)
def test_a_taint_needs_a_toleration_that_covers_it(toleration: Tolerated, is_used: bool) -> None:
    tainted = node("a", taints=[{"key": "team", "value": "b", "effect": "NoSchedule"}])
    assert bool(inventory(tainted, selection=Selection(tolerations=(toleration,))).groups) is is_used


def affinity(*expressions: JsonObject, field: str = "matchExpressions") -> JsonObject:
    term = {"nodeSelectorTerms": [{field: list(expressions)}]}
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}}


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ({"scheduling": {"nodeSelector": {"pool": "x"}}}, ["a"]),
        ({"podTemplate": {"spec": {"nodeSelector": {"pool": "y"}}}}, ["b"]),
        ({"podTemplate": {"spec": affinity({"key": "pool", "operator": "In", "values": ["x", "z"]})}}, ["a"]),
        ({"podTemplate": {"spec": affinity({"key": "pool", "operator": "NotIn", "values": ["x"]})}}, ["b"]),
        ({"podTemplate": {"spec": affinity({"key": "pool", "operator": "DoesNotExist"})}}, []),
        ({"podTemplate": {"spec": affinity({"key": "rank", "operator": "Gt", "values": ["1"]})}}, ["b"]),
        ({"podTemplate": {"spec": affinity({"key": "rank", "operator": "Lt", "values": ["2"]})}}, ["a"]),
        (
            {"podTemplate": {"spec": affinity(
                {"key": "metadata.name", "operator": "In", "values": ["b"]}, field="matchFields")}},
            ["b"],
        ),
        ({}, ["a", "b"]),
    ],
)  # fmt: skip
def test_only_nodes_that_the_experiments_pods_may_use_count(spec: JsonObject, names: list[str]) -> None:
    def product(name: str, pool: str, rank: str) -> JsonObject:
        return node(name, {"nvidia.com/gpu.product": name, "nvidia.com/gpu.memory": "8192", "pool": pool, "rank": rank})

    selection = selection_of(parse_spec({**MINIMAL, **spec}))
    found = inventory(product("a", "x", "1"), product("b", "y", "2"), selection=selection)
    assert [group.name for group in found.groups] == names
    assert bool(found.faults) is not bool(names)


def test_a_selector_that_matches_no_node_is_named() -> None:
    found = inventory(node("a"), selection=Selection(labels=(("pool", "x"),)))
    (fault,) = found.faults
    assert fault == (
        "Node a with nvidia.com/gpu does not match the experiment's node selector or affinity. Change "
        "spec.scheduling.nodeSelector or spec.podTemplate."
    )


def test_a_profile_supplies_the_memory_that_labels_lack() -> None:
    profiles = [
        {"name": "gaudi", "resource": "habana.ai/gaudi", "memoryGiB": 96, "perNode": 8},
        {"name": "big", "memoryGiB": 80, "perNode": 8, "nodeLabels": {"pool": "big"}},
    ]
    found = inventory(node("a", {}, {"habana.ai/gaudi": "4"}), node("b", {"pool": "big"}), profiles=profiles)
    assert shape(found) == [
        ("gaudi", "habana.ai/gaudi", 98304, 4, 1, False),
        ("big", "nvidia.com/gpu", 81920, 8, 1, False),
    ]
    assert inventory(node("b", {"pool": "small"}), profiles=profiles).groups == ()


def test_labels_overrule_a_profile() -> None:
    (group,) = inventory(node("a"), profiles=[{"name": "p", "memoryGiB": 10, "perNode": 2}]).groups
    assert (group.name, group.memory_mib, group.per_node) == ("NVIDIA-H100-80GB-HBM3", 81559, 8)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)
quantities = st.one_of(
    st.integers(0, 9).map(str), st.sampled_from(["8k", "-1", "x", "", "1.5", "8Gi", "9z"]), json_values
)
label_values = st.one_of(
    st.sampled_from(["81559", "0", "", "192G", "NVIDIA-A100", "x-MIG-1g.5gb", "-3"]), st.text(max_size=6)
)
NAMES = ["nvidia.com/gpu", "nvidia.com/mig-1g.5gb", "amd.com/gpu", "gpu.intel.com/xe", "cpu", "habana.ai/gaudi"]
LABELS = [*H100, "amd.com/gpu.vram", "gpu.intel.com/product", "cloud.google.com/gke-gpu-partition-size", "pool"]


@given(
    st.lists(
        st.builds(
            node,
            name=st.sampled_from("abc"),
            labels=st.dictionaries(st.sampled_from(LABELS), label_values),
            allocatable=st.dictionaries(st.sampled_from(NAMES), quantities),
            ready=st.sampled_from(["True", "False"]),
        ),
        max_size=6,
    )
)
def test_no_label_or_amount_makes_a_group_that_cannot_be(nodes: list[JsonObject]) -> None:
    found = inventory(*nodes)
    for group in found.groups:
        assert group.memory_mib > 0
        assert group.per_node > 0
        assert 0 < (group.total or 0) <= len(nodes) * group.per_node
    assert all(fault.endswith(".") for fault in found.faults)
