"""RBAC authorization, and the check against privilege escalation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.apis.request import User
from wrpo_devcluster.apiserver.schema.kinds import Kind
from wrpo_devcluster.apiserver.storage.store import Store
from wrpo_devcluster.client import JsonObject

GROUP = "rbac.authorization.k8s.io"


@dataclass(frozen=True, slots=True)
class Attributes:
    """Target of a request: a resource, or a path if `path` is set."""

    verb: str
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""

    @property
    def combined(self) -> str:
        """Resource as rules name it, e.g. `pods/log`."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


def rule_allows(rule: JsonObject, asked: Attributes) -> bool:
    """Return whether one rule of a role covers the request."""
    verbs = rule.get("verbs") or ()
    if "*" not in verbs and asked.verb not in verbs:
        return False
    if asked.path:
        return any(_path_matches(pattern, asked.path) for pattern in rule.get("nonResourceURLs") or ())
    groups = rule.get("apiGroups") or ()
    if "*" not in groups and asked.group not in groups:
        return False
    resources = rule.get("resources") or ()
    matching = {"*", asked.combined} | ({f"*/{asked.subresource}"} if asked.subresource else set())
    if not matching.intersection(resources):
        return False
    names = rule.get("resourceNames") or ()
    return not names or asked.name in names


def _path_matches(pattern: str, path: str) -> bool:
    return pattern in {"*", path} or (pattern.endswith("*") and path.startswith(pattern[:-1]))


def rule_covers(owner: list[JsonObject], rule: JsonObject) -> bool:
    """Return whether the owner's rules include everything of `rule`."""
    for verb in rule.get("verbs") or ():
        for url in rule.get("nonResourceURLs") or ():
            if not any(rule_allows(held, Attributes(verb, path=url)) for held in owner):
                return False
        for group in rule.get("apiGroups") or ():
            for resource in rule.get("resources") or ():
                plain, _, sub = resource.partition("/")
                for name in rule.get("resourceNames") or ("",):
                    asked = Attributes(verb, group, plain, sub, name=name)
                    if not any(_holds(held, asked) for held in owner):
                        return False
    return True


def _holds(rule: JsonObject, asked: Attributes) -> bool:
    names = rule.get("resourceNames") or ()
    if names and not asked.name:
        return False
    return rule_allows(rule, asked)


class Authorizer:
    """Authorizer by the Roles and bindings in the store, with bindings indexed by subject."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._revision = -1
        self._writes = 0
        self._index: dict[tuple[str, str, str], list[tuple[str, JsonObject]]] = {}

    def changed(self) -> None:
        """Invalidate the index after a write of a Role or binding."""
        self._writes += 1

    def _bindings(self) -> dict[tuple[str, str, str], list[tuple[str, JsonObject]]]:
        if self._revision != self._writes:
            index: dict[tuple[str, str, str], list[tuple[str, JsonObject]]] = {}
            for resource in ("clusterrolebindings", "rolebindings"):
                for record in self.store.list(f"{GROUP}/{resource}", None):
                    scope = record.obj["metadata"].get("namespace", "")
                    for subject in record.obj.get("subjects") or ():
                        key = (subject.get("kind", ""), subject.get("namespace", ""), subject.get("name", ""))
                        index.setdefault(key, []).append((scope, record.obj))
            self._index, self._revision = index, self._writes
        return self._index

    def _subjects(self, user: User) -> Iterator[tuple[str, str, str]]:
        yield ("User", "", user.name)
        for group in user.groups:
            yield ("Group", "", group)
        if user.name.startswith("system:serviceaccount:"):
            _, _, namespace, name = user.name.split(":", 3)
            yield ("ServiceAccount", namespace, name)

    def rules(self, user: User, namespace: str) -> list[JsonObject]:
        """Return every rule that applies to the user in a namespace (empty: cluster-wide)."""
        found: list[JsonObject] = []
        index = self._bindings()
        for subject in self._subjects(user):
            for scope, binding in index.get(subject, ()):
                if scope in {"", namespace}:
                    found += self.role_rules(binding["roleRef"], scope)
        return found

    def role_rules(self, reference: JsonObject, namespace: str) -> list[JsonObject]:
        """Return the rules of the role that a binding's `roleRef` names; empty if the role does not exist."""
        if reference.get("kind") == "ClusterRole":
            record = self.store.get(f"{GROUP}/clusterroles", "", reference.get("name", ""))
        else:
            record = self.store.get(f"{GROUP}/roles", namespace, reference.get("name", ""))
        return (record.obj.get("rules") or []) if record else []

    def allowed(self, user: User, asked: Attributes) -> bool:
        """Return whether the user may do this, by any binding or as a privileged user."""
        if user.privileged:
            return True
        return any(rule_allows(rule, asked) for rule in self.rules(user, asked.namespace))

    def check(self, user: User, asked: Attributes) -> None:
        """Raise Forbidden, in the real server's wording, unless the user has the right."""
        if self.allowed(user, asked):
            return
        if asked.path:
            why = f'User "{user.name}" cannot {asked.verb} path "{asked.path}"'
            raise errors.error(403, "Forbidden", f"forbidden: {why}", {})
        place = f'in the namespace "{asked.namespace}"' if asked.namespace else "at the cluster scope"
        why = f'User "{user.name}" cannot {asked.verb} resource "{asked.combined}" in API group "{asked.group}" {place}'
        raise errors.forbidden(asked.resource, asked.group, asked.name, why)

    def check_escalation(self, kind: Kind, obj: JsonObject, old: JsonObject | None, user: User) -> None:
        """Refuse to grant more rights than the user has, unless the user may `escalate` or `bind`."""
        if user.privileged:
            return
        namespace = obj["metadata"].get("namespace", "")
        name = obj["metadata"].get("name", "")
        if kind.kind in {"Role", "ClusterRole"}:
            verb, needed = "escalate", obj.get("rules") or []
            if old is not None and old.get("rules") == obj.get("rules"):
                return
            asked = Attributes(verb, GROUP, kind.plural, namespace=namespace, name=name)
        else:
            reference = obj["roleRef"]
            needed = self.role_rules(reference, namespace)
            resource = "clusterroles" if reference["kind"] == "ClusterRole" else "roles"
            asked = Attributes("bind", GROUP, resource, namespace=namespace, name=reference["name"])
        if self.allowed(user, asked):
            return
        held = self.rules(user, namespace)
        missing = [rule for rule in needed if not rule_covers(held, rule)]
        if missing:
            listed = "\n".join(_shown(rule) for rule in missing)
            why = (
                f'user "{user.name}" (groups={list(user.groups)}) is attempting to grant RBAC permissions not currently'
                f" held:\n{listed}"
            )
            raise errors.forbidden(kind.plural, kind.group, name, why)


def _shown(rule: JsonObject) -> str:
    parts = [
        f"{label}:{rule[name]}"
        for label, name in (
            ("APIGroups", "apiGroups"), ("Resources", "resources"), ("ResourceNames", "resourceNames"),
            ("NonResourceURLs", "nonResourceURLs"), ("Verbs", "verbs"),
        )
        if rule.get(name)
    ]  # fmt: skip
    return "{" + ", ".join(parts) + "}"
