"""References from experiments to artifacts, which decide whether an artifact may be removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from wrpo_engine.storage import Found
from wrpo_operator.api.parsing import SpecError, parse_spec
from wrpo_operator.api.status import parse_status
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.runtime.resources import JsonObject, name_of, namespace_of


@dataclass(frozen=True, slots=True)
class References:
    """Experiments (namespace/name) that refer to each artifact, by address."""

    by_address: Mapping[str, frozenset[str]]
    unreadable: tuple[str, ...] = ()
    """Experiments whose spec this version cannot parse, so that their artifacts are unknown."""

    def of(self, address: str) -> frozenset[str]:
        """Return the experiments that refer to the artifact at an address."""
        return self.by_address.get(address, frozenset())


def references_of(experiments: Iterable[JsonObject]) -> References:
    """Return the references of experiments: results in their status, and all artifacts that their specs would create.

    An address counts in every storage, so that rather too many artifacts are kept than too few.
    """
    found: dict[str, set[str]] = {}
    unreadable: list[str] = []
    for obj in experiments:
        name = f"{namespace_of(obj)}/{name_of(obj)}"
        for stage in parse_status(obj.get("status")).stages:
            found.setdefault(f"{stage.name}/{stage.hash}", set()).add(name)
            if stage.artifact:
                found.setdefault(stage.artifact, set()).add(name)
        try:
            planned = build_graph(parse_spec(obj.get("spec") or {}))
        except SpecError:
            unreadable.append(name)
            continue
        for node in planned:
            found.setdefault(f"{node.id}/{node.hash}", set()).add(name)
    return References({address: frozenset(names) for address, names in found.items()}, tuple(sorted(unreadable)))


def with_inputs(references: References, artifacts: Iterable[Found]) -> References:
    """Add the inputs of referenced artifacts according to their manifests, recursively upstream."""
    manifests = {found.address: found.manifest for found in artifacts if found.manifest is not None}
    known = {address: set(names) for address, names in references.by_address.items()}
    waiting = [address for address in known if address in manifests]
    while waiting:
        address = waiting.pop()
        for entry in manifests[address].inputs.values():
            upstream = f"{entry.stage}/{entry.hash}"
            before = known.setdefault(upstream, set())
            if not known[address] <= before:
                before |= known[address]
                if upstream in manifests:
                    waiting.append(upstream)
    return References({address: frozenset(names) for address, names in known.items()}, references.unreadable)


def removable(artifacts: Iterable[Found], references: References, *, now: datetime, min_age: timedelta) -> list[Found]:
    """Return the artifacts that no experiment refers to and that have not changed within `min_age`."""
    return [found for found in artifacts if not references.of(found.address) and now - found.modified >= min_age]
