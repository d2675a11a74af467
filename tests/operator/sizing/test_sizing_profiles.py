"""Profiles and prices: what they describe, and how a wrong one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wrpo_operator.api.pods import AcceleratorProfile
from wrpo_operator.sizing.products import known_memory_mib
from wrpo_operator.sizing.profiles import (
    ProfileError,
    parse_prices,
    parse_profiles,
    profile_inventory,
)
from wrpo_operator.sizing.values_schema import profiles_schema, with_profiles

FIELDS = "name, resource, memoryGiB, perNode, nodes, product, nodeLabels, price"
H100: dict[str, Any] = {"name": "h100", "memoryGiB": 80, "perNode": 8}


def test_profiles_describe_groups() -> None:
    profiles = parse_profiles([
        {**H100, "nodes": 4, "product": "NVIDIA-H100-80GB-HBM3", "nodeLabels": {"pool": "x"}, "price": 3},
        {"name": "slices", "resource": "nvidia.com/mig-1g.10gb", "memoryGiB": 9.5, "perNode": 7},
    ])  # fmt: skip
    found = profile_inventory(profiles, {"SLICES": 0.25, "h100": 9})
    assert (found.source, found.faults) == ("profiles h100, slices of the chart's values", ())
    assert [
        (g.name, g.memory_mib, g.per_node, g.nodes, g.total, g.is_slice, g.price_per_hour) for g in found.groups
    ] == [
        ("h100", 81920, 8, 4, 32, False, 3.0),
        ("slices", 9728, 7, None, None, True, 0.25),
    ]
    assert found.groups[0].labels == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "pool": "x"}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, 'must be a JSON list, e.g. [{"name": "h100", "memoryGiB": 80, "perNode": 8}]'),
        ([{"memoryGiB": 80, "perNode": 8}], "lacks [0].name. Set it"),
        ([H100, {"name": "x", "perNode": 8}], "lacks [1].memoryGiB. Set it"),
        ([{**H100, "memoryGiB": "80"}], "has [0].memoryGiB = '80', which should be a valid number"),
        ([{**H100, "memoryGiB": 0}], "has [0].memoryGiB = 0, which should be greater than 0"),
        ([{**H100, "perNode": 0}], "has [0].perNode = 0, which should be greater than or equal to 1"),
        ([{**H100, "perNode": True}], "has [0].perNode = True, which should be a valid integer"),
        (
            [{**H100, "count": 8}],
            f"has the unknown field [0].count. Fields are {FIELDS}",
        ),
        ([H100, {**H100, "perNode": 4}], "has two entries named 'h100': [0] and [1]. Rename one"),
    ],
)
def test_a_wrong_profile_is_refused_by_entry_field_and_value(raw: Any, message: str) -> None:
    with pytest.raises(ProfileError) as refused:
        parse_profiles(raw)
    assert str(refused.value) == message


def test_the_schema_of_the_charts_values_is_that_of_the_profiles() -> None:
    chart = Path(__file__).resolve().parents[3] / "charts" / "wrpo-operator"
    text = (chart / "values.schema.json").read_text(encoding="utf-8")
    assert with_profiles(text) == text, "run `make crds`"
    made = profiles_schema()["items"]
    assert list(made["properties"]) == FIELDS.split(", ")
    assert made["required"] == ["name", "memoryGiB", "perNode"]
    assert made["properties"]["perNode"] == {"type": "integer", "minimum": 1, "maximum": 64}
    described = (
        (chart / "values.yaml").read_text(encoding="utf-8").partition("profiles: []")[0].rpartition("Fields:")[2]
    )
    assert [name for name in made["properties"] if name not in described] == []
    with pytest.raises(ValueError, match="found 0 times"):
        with_profiles("{}")


def test_profiles_of_the_spec_and_of_the_chart_have_the_same_bounds() -> None:
    spec, chart = AcceleratorProfile.model_json_schema()["properties"], profiles_schema()["items"]["properties"]
    assert set(chart) - set(spec) == {"name", "price"}
    for name in ("perNode", "nodes", "nodeLabels", "memoryGiB"):
        rules = next((rule for rule in spec[name].get("anyOf", ()) if rule != {"type": "null"}), spec[name])
        for bound in ("maximum", "maxProperties"):
            assert rules.get(bound) == chart[name].get(bound), name


def test_a_resource_without_a_domain_is_refused() -> None:
    with pytest.raises(ProfileError, match=r"^has \[0\].resource = 'gpu', which should match pattern"):
        parse_profiles([{**H100, "resource": "gpu"}])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], 'must be a JSON object from product to price, e.g. {"NVIDIA-L40S": 1.1}'),
        ({"A": "1"}, "has the price '1' for A, which is not a number of at least 0"),
        ({"A": True}, "has the price True for A, which is not a number of at least 0"),
        ({"A": -1}, "has the price -1 for A, which is not a number of at least 0"),
        ({"A": float("nan")}, "has the price nan for A, which is not a number of at least 0"),
    ],
)
def test_a_wrong_price_is_refused(raw: Any, message: str) -> None:
    with pytest.raises(ProfileError) as refused:
        parse_prices(raw)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("product", "least_gib", "most_gib"),
    [
        ("NVIDIA-H100-80GB-HBM3", 79, 80),
        ("nvidia-h100-mega-80gb", 79, 80),
        ("h100", 79, 80),
        ("NVIDIA-H100-NVL", 92, 94),
        ("NVIDIA-H200", 140, 141),
        ("nvidia-h200-141gb", 140, 141),
        ("NVIDIA-A100-SXM4-80GB", 79, 80),
        ("nvidia-a100-80gb", 79, 80),
        ("NVIDIA-A100-SXM4-40GB", 39, 40),
        ("nvidia-tesla-a100", 39, 40),
        ("NVIDIA-A800-SXM4-80GB", 79, 80),
        ("NVIDIA-L40S", 44, 45),
        ("nvidia-l4", 22, 23),
        ("NVIDIA-A10G", 22, 23),
        ("NVIDIA-A30", 24, 24),
        ("nvidia-tesla-t4", 14, 15),
        ("Tesla-V100-SXM2-32GB", 31, 32),
        ("Tesla-V100-SXM2-16GB", 15, 16),
        ("NVIDIA-B200", 178, 180),
        ("NVIDIA-GB200", 178, 180),
        ("NVIDIA-GeForce-RTX-4090", 23, 24),
        ("NVIDIA-RTX-6000-Ada-Generation", 47, 48),
        ("AMD_Instinct_MI300X_OAM", 191, 192),
    ],
)
def test_well_known_products_have_no_more_memory_than_they_report(product: str, least_gib: int, most_gib: int) -> None:
    assert least_gib * 1024 <= (known_memory_mib(product) or 0) <= most_gib * 1024


@pytest.mark.parametrize("product", ["", "NVIDIA-X9000", "present", "h1000", "la100s"])
def test_an_unknown_product_has_no_memory(product: str) -> None:
    assert known_memory_mib(product) is None
