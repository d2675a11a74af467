"""Profiles: accelerators that an administrator describes where nothing else in the cluster does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from wrpo_operator.api.pods import MOST_GIB, MOST_NODE_LABELS, MOST_NODES, MOST_PER_NODE
from wrpo_operator.sizing.inventory import AcceleratorGroup, Inventory
from wrpo_operator.sizing.resource_names import DEFAULT_RESOURCE, PRODUCT_LABELS, is_slice

MIB_PER_GIB = 1024
RESOURCE_PATTERN = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
_ALIASES = AliasChoices("memoryGiB", "memory_gib")
Name = Annotated[str, Field(min_length=1, max_length=63)]
LabelValue = Annotated[str, Field(max_length=63, pattern=r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")]


class ProfileError(ValueError):
    """A profile or price that cannot be used: the entry, the field, its value and the rule."""


class Profile(BaseModel):
    """Accelerators of one kind. Attributes have the meaning of those of AcceleratorGroup."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Name
    resource: Annotated[str, Field(max_length=316, pattern=RESOURCE_PATTERN)] = DEFAULT_RESOURCE
    memory_gib: Annotated[
        float,
        Field(gt=0, le=MOST_GIB, allow_inf_nan=False, validation_alias=_ALIASES),
    ]
    """Memory of one accelerator in GiB."""
    per_node: Annotated[int, Field(ge=1, le=MOST_PER_NODE, validation_alias=AliasChoices("perNode", "per_node"))]
    nodes: Annotated[int | None, Field(ge=1, le=MOST_NODES)] = None
    """Unset: unknown, e.g. because an autoscaler adds them."""
    product: Name | None = None
    """Value of the nodes' product label, which pods then select."""
    node_labels: Annotated[
        dict[str, LabelValue] | None,
        Field(max_length=MOST_NODE_LABELS, validation_alias=AliasChoices("nodeLabels", "node_labels")),
    ] = None
    """Labels of the nodes that have them, which pods then select."""
    price: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    """Price of one accelerator for an hour."""

    @property
    def memory_mib(self) -> int:
        """Memory of one accelerator in MiB."""
        return int(self.memory_gib * MIB_PER_GIB)

    @property
    def labels(self) -> dict[str, str]:
        """Node labels that pods select."""
        label = PRODUCT_LABELS.get(self.resource)
        found = {label: self.product} if self.product and label else {}
        return {**found, **(self.node_labels or {})}

    def describes(self, resource: str, product: str, labels: Mapping[str, str]) -> bool:
        """Return whether it describes accelerators of this resource on a node with these labels."""
        is_its_product = self.product is None or self.product == product
        wanted = (self.node_labels or {}).items()
        return resource == self.resource and is_its_product and all(labels.get(key) == value for key, value in wanted)


def parse_profiles(raw: Any) -> tuple[Profile, ...]:
    """Return the profiles of a parsed JSON list; raise ProfileError."""
    if not isinstance(raw, list):
        raise ProfileError('must be a JSON list, e.g. [{"name": "h100", "memoryGiB": 80, "perNode": 8}]')
    found = tuple(_parsed(entry, f"[{place}]") for place, entry in enumerate(raw))
    names = [profile.name for profile in found]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise ProfileError(f"has two entries named {name!r}: [{names.index(name)}] and [{place}]. Rename one")
    return found


def parse_prices(raw: Any) -> dict[str, float]:
    """Return the prices of a parsed JSON object, by product, flavor or profile; raise ProfileError."""
    if not isinstance(raw, dict):
        raise ProfileError('must be a JSON object from product to price, e.g. {"NVIDIA-L40S": 1.1}')
    for product, price in raw.items():
        if isinstance(price, bool) or not isinstance(price, int | float) or not 0 <= price < float("inf"):
            raise ProfileError(f"has the price {price!r} for {product}, which is not a number of at least 0")
    return {str(product): float(price) for product, price in raw.items()}


def profile_inventory(
    profiles: Sequence[Profile],
    prices: Mapping[str, float],
    *,
    faults: tuple[str, ...] = (),
) -> Inventory:
    """Return the accelerators that profiles describe; `faults` are those of the sources that came before them."""
    kind = "profile" if len(profiles) == 1 else "profiles"
    names = ", ".join(profile.name for profile in profiles)
    return Inventory(
        groups=tuple(group_of(profile, profile.name, prices) for profile in profiles),
        source=f"{kind} {names} of the chart's values",
        faults=faults,
    )


def price_of(prices: Mapping[str, float], *names: str) -> float | None:
    """Return the price of the first of these names that has one; letter case does not matter."""
    lower = {name.lower(): price for name, price in prices.items()}
    return next((lower[name.lower()] for name in names if name.lower() in lower), None)


def group_of(profile: Profile, name: str, prices: Mapping[str, float]) -> AcceleratorGroup:
    """Return the accelerators that a profile describes, as a group of this name."""
    price = profile.price if profile.price is not None else price_of(prices, profile.product or "", name)
    return AcceleratorGroup(
        name=name,
        resource=profile.resource,
        memory_mib=profile.memory_mib,
        per_node=profile.per_node,
        nodes=profile.nodes,
        labels=profile.labels,
        is_slice=is_slice(profile.resource),
        price_per_hour=price,
    )


def _parsed(entry: Any, where: str) -> Profile:
    try:
        return Profile.model_validate(entry)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = "".join(f".{part}" for part in first["loc"])
        if first["type"] == "missing":
            raise ProfileError(f"lacks {where}{path}. Set it") from None
        if first["type"] == "extra_forbidden":
            known = ", ".join(Profile.model_json_schema()["properties"])
            raise ProfileError(f"has the unknown field {where}{path}. Fields are {known}") from None
        rule = str(first["msg"]).removeprefix("Input should ").removeprefix("String should ")
        raise ProfileError(f"has {where}{path} = {first['input']!r}, which should {rule}") from None
