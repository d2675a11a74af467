"""Groups of accelerators and models of the sizing tests."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_operator.api.placement import Placement
from wrpo_operator.sizing.catalogue import known_facts
from wrpo_operator.sizing.inventory import AcceleratorGroup, Inventory
from wrpo_operator.sizing.requests import DoesNotFit

MEMORY_MIB = {80: 81559, 141: 143771, 48: 46068, 40: 40960, 24: 24564}
"""Memory by the size in GB that products are named by."""
LLAMA_8B = "meta-llama/Meta-Llama-3-8B-Instruct"
MISTRAL_LARGE = "mistralai/Mistral-Large-Instruct-2407"
QWEN_72B = "Qwen/Qwen2-72B-Instruct"
DEEPSEEK = "deepseek-ai/DeepSeek-V2-Chat-0628"
PHI_MEDIUM = "microsoft/Phi-3-medium-4k-instruct"


def facts(model: str) -> ModelFacts:
    known = known_facts(model)
    assert known is not None
    return known.facts


def cards(gigabytes: int, per_node: int = 8, **changes: Any) -> AcceleratorGroup:
    values: dict[str, Any] = {"name": f"card-{gigabytes}", "resource": "nvidia.com/gpu", "nodes": 1}
    return AcceleratorGroup(**values | {"memory_mib": MEMORY_MIB[gigabytes], "per_node": per_node} | changes)


def cluster(*groups: AcceleratorGroup, faults: tuple[str, ...] = ()) -> Inventory:
    return Inventory(groups=groups, source="the labels of the nodes", faults=faults)


def placed(result: Placement | DoesNotFit) -> Placement:
    assert isinstance(result, Placement), result
    return result


def refused(result: Placement | DoesNotFit) -> DoesNotFit:
    assert isinstance(result, DoesNotFit), result
    return result


def some_facts() -> st.SearchStrategy[ModelFacts]:
    """Models from a million parameters to a trillion, with heads of all kinds."""

    def build(values: tuple[int, int, int, int, int, int, bool]) -> ModelFacts:
        layers, key_value_heads, groups, head_size, parameters, splittable, latent = values
        return ModelFacts(
            model_type="generated",
            parameters=parameters,
            weight_bytes=2 * parameters,
            layers=layers,
            hidden_size=key_value_heads * groups * head_size,
            attention_heads=key_value_heads * groups,
            key_value_heads=key_value_heads,
            head_size=head_size,
            latent_size=576 if latent else None,
            splittable=splittable,
            vocabulary=32000,
            context=8192,
        )

    return st.tuples(
        st.integers(1, 128),
        st.sampled_from([1, 2, 3, 4, 5, 8, 10, 16, 32]),
        st.sampled_from([1, 2, 3, 4, 6, 7, 8]),
        st.sampled_from([64, 80, 128, 256]),
        st.integers(10**6, 10**12),
        st.sampled_from([64, 128, 192, 320, 1]),
        st.booleans(),
    ).map(build)


def some_groups() -> st.SearchStrategy[tuple[AcceleratorGroup, ...]]:
    group = st.builds(
        AcceleratorGroup,
        name=st.sampled_from(["a", "b", "c"]),
        resource=st.sampled_from(["nvidia.com/gpu", "amd.com/gpu"]),
        memory_mib=st.integers(4096, 300_000),
        per_node=st.sampled_from([1, 2, 3, 4, 6, 8, 16]),
        nodes=st.none() | st.integers(1, 16),
        quota=st.none() | st.integers(1, 40),
        is_slice=st.booleans(),
        price_per_hour=st.none() | st.floats(0.1, 10),
    )
    return st.lists(group, min_size=1, max_size=3, unique_by=lambda each: each.name).map(tuple)
