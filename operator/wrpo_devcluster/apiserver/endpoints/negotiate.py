"""Content negotiation: the form of a reply that the client accepts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.endpoints import event_forms
from wrpo_devcluster.apiserver.printers.tables import make_table, partial
from wrpo_devcluster.apiserver.schema.kinds import Kind
from wrpo_devcluster.client import JsonObject

JSON, YAML = "application/json", "application/yaml"
_MEDIA = {JSON: JSON, "*/*": JSON, "application/*": JSON, "": JSON, YAML: YAML}
_ACCEPTED = (JSON, YAML, "application/vnd.kubernetes.protobuf")


@dataclass(frozen=True, slots=True)
class View:
    """Accepted form: plain objects (no transform), tables, or metadata only."""

    style: str
    kind: Kind
    include: str
    clock: Callable[[], datetime]

    @property
    def transform(self) -> Callable[[JsonObject], JsonObject] | None:
        """Return the transform of a single object."""
        if self.style == "Table":
            return self._one_row
        if self.style:
            return partial
        return event_forms.from_core if self.kind.group == event_forms.GROUP else None

    def for_watch(self) -> Callable[[JsonObject], JsonObject] | None:
        """Return the transform of watch events. A table's columns come with the first event only."""
        if self.style != "Table":
            return self.transform
        first = True

        def transform(obj: JsonObject) -> JsonObject:
            nonlocal first
            table = self._one_row(obj) if "uid" in obj["metadata"] else self._empty(obj)
            if not first:
                table["columnDefinitions"] = None
            first = False
            return table

        return transform

    def table(self, objects: list[JsonObject], meta: JsonObject) -> JsonObject:
        """Return the objects as a meta.k8s.io Table."""
        return make_table(self.kind, objects, meta, include=self.include, now=self.clock())

    def _one_row(self, obj: JsonObject) -> JsonObject:
        return self.table([obj], {"resourceVersion": obj["metadata"].get("resourceVersion", "")})

    def _empty(self, obj: JsonObject) -> JsonObject:
        """Return a table's bookmark, which carries its version in a row, like the real server's."""
        table = self.table([], {"resourceVersion": obj["metadata"]["resourceVersion"]})
        table["rows"] = [{"cells": [], "object": partial(obj)}]
        return table


def view_of(accept: str, kind: Kind, include: str, clock: Callable[[], datetime]) -> View:
    """Return the first acceptable form; raise 406 if there is none."""
    for media, parameters in _clauses(accept):
        if media not in _MEDIA:
            continue
        style = parameters.get("as", "")
        if not style:
            return View("", kind, include, clock)
        if parameters.get("g") == "meta.k8s.io" and parameters.get("v") == "v1":
            if style == "Table":
                return View("Table", kind, include, clock)
            if style in {"PartialObjectMetadata", "PartialObjectMetadataList"}:
                return View("Partial", kind, include, clock)
    raise errors.not_acceptable(_ACCEPTED)


def serialization_of(accept: str) -> str:
    """Return JSON or YAML by the client's preference; raise 406 if it accepts neither."""
    for media, _ in _clauses(accept):
        if media in _MEDIA:
            return _MEDIA[media]
    raise errors.not_acceptable(_ACCEPTED)


def _clauses(accept: str) -> list[tuple[str, dict[str, str]]]:
    """Return media types with their parameters, the most preferred first."""
    found = []
    for clause in accept.split(","):
        media, *parameters = (part.strip() for part in clause.split(";"))
        found.append((media, dict(parameter.partition("=")[::2] for parameter in parameters)))
    return sorted(found, key=lambda clause: -_quality(clause[1]))


def _quality(parameters: dict[str, str]) -> float:
    try:
        return float(parameters.get("q", "1"))
    except ValueError:
        return 1.0
