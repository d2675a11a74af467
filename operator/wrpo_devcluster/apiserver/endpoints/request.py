"""Resource requests parsed from paths and headers, and their replies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from wrpo_devcluster.apiserver.apis import errors, options
from wrpo_devcluster.apiserver.apis.request import Context, User
from wrpo_devcluster.apiserver.auth.rbac import Attributes
from wrpo_devcluster.apiserver.endpoints import event_forms
from wrpo_devcluster.apiserver.endpoints.watch import Matches
from wrpo_devcluster.apiserver.schema.kinds import Kind, Target
from wrpo_devcluster.apiserver.services import Services
from wrpo_devcluster.apiserver.storage.indexes import Equals, indexed_condition
from wrpo_devcluster.apiserver.storage.selectors import SelectorError, matcher, parse_fields
from wrpo_devcluster.client import Patch

_NAMESPACE_SUBRESOURCES = frozenset({"status", "finalize"})
PATCH_TYPES: dict[str, Patch] = {
    "application/json-patch+json": "json",
    "application/merge-patch+json": "merge",
    "application/strategic-merge-patch+json": "strategic",
    "application/apply-patch+yaml": "apply",
}


@dataclass(slots=True)
class Answer:
    """Reply of a request: a body or a stream."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    warnings: list[str] = field(default_factory=list)
    stream: AsyncIterator[bytes] | None = None


@dataclass(frozen=True, slots=True)
class ResourcePath:
    """Path of a resource, e.g. `/api/v1/namespaces/ns/pods/p/log`."""

    group: str
    version: str
    plural: str
    namespace: str | None
    name: str
    subresource: str

    @classmethod
    def parse(cls, parts: list[str]) -> ResourcePath | None:
        """Parse a path; None if it names no resource."""
        if parts[:1] == ["api"] and len(parts) > 2:
            group, version, rest = "", parts[1], parts[2:]
        elif parts[:1] == ["apis"] and len(parts) > 3:
            group, version, rest = parts[1], parts[2], parts[3:]
        else:
            return None
        namespace = None
        is_of_namespace = len(rest) == 3 and rest[2] in _NAMESPACE_SUBRESOURCES
        if rest[0] == "namespaces" and len(rest) > 2 and not is_of_namespace:
            namespace, rest = rest[1], rest[2:]
        plural, name, *below = [*rest, ""] if len(rest) == 1 else rest
        return cls(group, version, plural, namespace, name, "/".join(below))

    def fits(self, kind: Kind) -> bool:
        """Return whether a kind has the subresource, and a namespace if the path has one."""
        has_subresource = not self.subresource or self.subresource in kind.subresources
        return has_subresource and (kind.namespaced or self.namespace is None)

    def asked(self, verb: str) -> Attributes:
        """Return the RBAC attributes of a request with this path."""
        return Attributes(verb, self.group, self.plural, self.subresource, self.namespace or "", self.name)


@dataclass(slots=True)
class ResourceRequest:
    """A request for a resource, from its path and headers."""

    services: Services
    user: User
    method: str
    kind: Kind
    namespace: str | None
    name: str
    subresource: str
    query: Mapping[str, str]
    accept: str
    user_agent: str

    @property
    def target(self) -> Target:
        """The object or collection at the path."""
        return Target(self.kind, self.namespace, self.name, self.subresource)

    @property
    def is_watch(self) -> bool:
        """True if the query asks for a watch."""
        return self.query.get("watch", "") in options.TRUE

    @property
    def is_misplaced(self) -> bool:
        """Return whether the path does not exist: custom resources of all namespaces can only be listed and watched."""
        is_partial = self.kind.namespaced and self.namespace is None
        return self.kind.custom is not None and is_partial and self.verb not in {"list", "watch"}

    @property
    def verb(self) -> str:
        """Return the verb as RBAC knows it."""
        if self.method in {"GET", "HEAD"}:
            if self.name:
                return "get"
            return "watch" if self.is_watch else "list"
        if self.method == "DELETE":
            return "delete" if self.name else "deletecollection"
        return {"POST": "create", "PUT": "update", "PATCH": "patch"}.get(self.method, self.method.lower())

    @property
    def asked(self) -> Attributes:
        """Return the RBAC attributes of the path."""
        kind = self.kind
        return Attributes(self.verb, kind.group, kind.plural, self.subresource, self.namespace or "", self.name)

    @property
    def authorized_name(self) -> str:
        """Return the object's name, also if a field selector selects exactly one."""
        if self.name or not self.query.get("fieldSelector"):
            return self.name
        try:
            wanted = parse_fields(self.query["fieldSelector"], self.kind.fields)
        except SelectorError:
            return ""
        return next((value for path, value, equal in wanted if equal and path == "metadata.name"), "")

    def context(self, media: str = "") -> Context:
        """Return the write options from the query."""
        if self.method != "DELETE":
            options.check_write(self.method, self.query, is_apply=PATCH_TYPES.get(media) == "apply")
        manager = self.query.get("fieldManager", "") or self.user_agent.split("/", 1)[0] or "unknown"
        return Context(
            self.user,
            manager,
            self.query.get("dryRun", "") == "All",
            self.query.get("fieldValidation", "") or "Warn",
            self.query.get("force", "") in options.TRUE,
        )

    def matches(self) -> Matches:
        """Return the test of the query's selectors; raise 400 for a malformed selector."""
        try:
            return matcher(*self._selectors())
        except SelectorError as problem:
            raise errors.bad_request(str(problem)) from problem

    def condition(self) -> Equals | None:
        """Return the condition of the (valid) selectors that an index can evaluate."""
        return indexed_condition(*self._selectors())

    def _selectors(self) -> tuple[str, str, frozenset[str]]:
        """Return the label selector, the field selector and its allowed fields, in terms of the stored form."""
        fields, supported = self.query.get("fieldSelector", ""), self.kind.fields
        if self.kind.group == event_forms.GROUP:
            parse_fields(fields, supported)
            fields, supported = event_forms.core_selector(fields), self.services.registry.core("events").fields
        return self.query.get("labelSelector", ""), fields, supported
