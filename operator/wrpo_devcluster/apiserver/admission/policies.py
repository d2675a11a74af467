"""Admission by ValidatingAdmissionPolicies: matching of writes, and the actions of bindings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.apis.request import Context, User
from wrpo_devcluster.apiserver.cel.check import RuleTypeError
from wrpo_devcluster.apiserver.cel.functions import EvaluationError
from wrpo_devcluster.apiserver.schema.kinds import Kind, Registry
from wrpo_devcluster.apiserver.storage.selectors import from_label_selector
from wrpo_devcluster.apiserver.storage.store import Store
from wrpo_devcluster.apiserver.validation.cel_rules import compile_untyped
from wrpo_devcluster.apiserver.validation.policy import VARIABLES
from wrpo_devcluster.client import ApiError, JsonObject

GROUP = "admissionregistration.k8s.io"
POLICIES, BINDINGS = f"{GROUP}/validatingadmissionpolicies", f"{GROUP}/validatingadmissionpolicybindings"
_CODES = {"Unauthorized": 401, "Forbidden": 403, "RequestEntityTooLarge": 413, "Invalid": 422}


@dataclass(frozen=True, slots=True)
class Write:
    """A write that is about to be stored. `obj` is None for a deletion, `old` for a creation."""

    kind: Kind
    obj: JsonObject | None
    old: JsonObject | None
    subresource: str = ""

    @property
    def operation(self) -> str:
        """Operation as policies name it: CREATE, UPDATE or DELETE."""
        if self.obj is None:
            return "DELETE"
        return "CREATE" if self.old is None else "UPDATE"

    @property
    def either(self) -> JsonObject:
        """The new object, or the old one of a deletion."""
        found = self.old if self.obj is None else self.obj
        assert found is not None
        return found


@dataclass(frozen=True, slots=True)
class Refusal:
    """A validation that a write fails."""

    message: str
    reason: str


class Policies:
    """Policies in the store, in the order of their names."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store = store
        self._registry = registry

    def check(self, write: Write, context: Context) -> None:
        """Refuse a write, or warn, as the bound policies require."""
        if write.kind.group == GROUP:
            # Otherwise a policy could prevent its own removal.
            return
        bindings = [record.obj for record in self._store.list(BINDINGS, None)]
        for record in self._store.list(POLICIES, None) if bindings else ():
            policy = record.obj
            bound = [one for one in bindings if one["spec"].get("policyName") == policy["metadata"]["name"]]
            if bound and self._is_concerned(policy["spec"].get("matchConstraints"), write):
                for binding in bound:
                    if self._is_concerned(binding["spec"].get("matchResources"), write):
                        self._check_binding(policy, binding, write, context)

    def _check_binding(self, policy: JsonObject, binding: JsonObject, write: Write, context: Context) -> None:
        actions = binding["spec"].get("validationActions") or ()
        names = f"'{policy['metadata']['name']}' with binding '{binding['metadata']['name']}'"
        for refusal in self._refusals(policy, binding, write, context):
            if "Warn" in actions:
                context.warn(f"Validation failed for ValidatingAdmissionPolicy {names}: {refusal.message}")
            if "Deny" in actions:
                raise _denied(write, f"ValidatingAdmissionPolicy {names} denied request: {refusal.message}", refusal)

    def _refusals(self, policy: JsonObject, binding: JsonObject, write: Write, context: Context) -> Iterator[Refusal]:
        is_strict = policy["spec"].get("failurePolicy", "Fail") == "Fail"
        shared = self._variables(write, context)
        try:
            parameters = self._parameters(policy, binding, write)
        except LookupError as problem:
            if is_strict:
                yield Refusal(str(problem), "")
            return
        for parameter in parameters:
            for refusal, is_fault in _evaluate(policy["spec"], {**shared, "params": parameter}):
                if is_strict or not is_fault:
                    yield refusal

    def _variables(self, write: Write, context: Context) -> JsonObject:
        meta = write.either["metadata"]
        namespace = self._store.get("/namespaces", "", meta.get("namespace", "")) if write.kind.namespaced else None
        return {
            "object": write.obj,
            "oldObject": write.old,
            "namespaceObject": namespace.obj if namespace is not None else None,
            "request": _request(write, context),
        }

    def _parameters(self, policy: JsonObject, binding: JsonObject, write: Write) -> Sequence[JsonObject | None]:
        """Return the parameter objects of a policy; raise LookupError if it requires some and there are none."""
        wanted, reference = policy["spec"].get("paramKind"), binding["spec"].get("paramRef")
        if wanted is None or reference is None:
            return [None]
        kind = next(
            (
                kind
                for kind in self._registry.kinds()
                if (kind.api_version, kind.kind) == (wanted.get("apiVersion"), wanted.get("kind"))
            ),
            None,
        )
        if kind is None:
            raise LookupError(f"failed to configure binding: {wanted.get('kind')} is no kind that is served")
        scope = reference.get("namespace") or write.either["metadata"].get("namespace", "") if kind.namespaced else ""
        if reference.get("name"):
            record = self._store.get(kind.storage_key, scope, reference["name"])
            found = [] if record is None else [record.obj]
        else:
            selector = from_label_selector(reference.get("selector"))
            found = [
                record.obj
                for record in self._store.list(kind.storage_key, scope)
                if all(part.matches(record.obj["metadata"].get("labels") or {}) for part in selector)
            ]
        if not found and reference.get("parameterNotFoundAction", "Deny") == "Deny":
            raise LookupError(
                "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"
            )
        return found

    def _is_concerned(self, match: JsonObject | None, write: Write) -> bool:
        if match is None:
            return True
        rules = match.get("resourceRules")
        if rules and not any(_rule_matches(rule, write) for rule in rules):
            return False
        if any(_rule_matches(rule, write) for rule in match.get("excludeResourceRules") or ()):
            return False
        return self._namespace_matches(match.get("namespaceSelector"), write) and _object_matches(
            match.get("objectSelector"), write
        )

    def _namespace_matches(self, selector: JsonObject | None, write: Write) -> bool:
        """Match a selector with the namespace's labels. Other cluster-scoped objects match every selector."""
        meta = write.either["metadata"]
        if (write.kind.group, write.kind.kind) == ("", "Namespace"):
            return _labels_match(selector, write.either)
        record = self._store.get("/namespaces", "", meta.get("namespace", ""))
        return record is None or _labels_match(selector, record.obj)


def _labels_match(selector: JsonObject | None, obj: JsonObject) -> bool:
    labels = obj["metadata"].get("labels") or {}
    return not selector or all(part.matches(labels) for part in from_label_selector(selector))


def _object_matches(selector: JsonObject | None, write: Write) -> bool:
    return any(_labels_match(selector, obj) for obj in (write.obj, write.old) if obj is not None)


def _rule_matches(rule: JsonObject, write: Write) -> bool:
    kind, name = write.kind, write.either["metadata"].get("name", "")
    scope = "Namespaced" if kind.namespaced else "Cluster"
    resource, resources = kind.plural, rule.get("resources") or ()
    if write.subresource:
        forms = {f"{resource}/{write.subresource}", f"*/{write.subresource}", f"{resource}/*", "*/*"}
    else:
        forms = {resource, "*", "*/*"}
    names = rule.get("resourceNames") or ()
    return (
        _holds(rule.get("operations"), write.operation)
        and _holds(rule.get("apiGroups"), kind.group)
        and _holds(rule.get("apiVersions"), kind.version)
        and not forms.isdisjoint(resources)
        and rule.get("scope", "*") in {"*", scope}
        and (not names or name in names)
    )


def _holds(listed: Sequence[str] | None, value: str) -> bool:
    return "*" in (listed or ()) or value in (listed or ())


def _request(write: Write, context: Context) -> JsonObject:
    """Return the AdmissionRequest that expressions see."""
    kind, meta = write.kind, write.either["metadata"]
    group_kind = {"group": kind.group, "version": kind.version, "kind": kind.kind}
    resource = {"group": kind.group, "version": kind.version, "resource": kind.plural}
    return {
        "kind": group_kind,
        "resource": resource,
        "subResource": write.subresource,
        "requestKind": group_kind,
        "requestResource": resource,
        "requestSubResource": write.subresource,
        "name": meta.get("name", ""),
        "namespace": meta.get("namespace", ""),
        "operation": write.operation,
        "userInfo": _user(context.user),
        "dryRun": context.dry_run,
    }


def _user(user: User) -> JsonObject:
    return {
        "username": user.name,
        "uid": user.uid,
        "groups": list(user.groups),
        "extra": {name: list(values) for name, values in user.extra},
    }


def _evaluate(spec: JsonObject, variables: JsonObject) -> Iterator[tuple[Refusal, bool]]:
    """Yield what fails, and whether the reason is an expression without a value."""
    for condition in spec.get("matchConditions") or ():
        value, problem = _value(condition["expression"], variables)
        if problem:
            yield Refusal(problem, ""), True
            return
        if value is not True:
            return
    variables = {**variables, "variables": _composed(spec, variables)}
    for validation in spec.get("validations") or ():
        value, problem = _value(validation["expression"], variables)
        if problem:
            yield Refusal(problem, ""), True
        elif value is not True:
            yield Refusal(_message(validation, variables), validation.get("reason", "")), False


def _composed(spec: JsonObject, variables: JsonObject) -> JsonObject:
    """Return the values of the policy's variables. One without a value is left out, so that only its users fail."""
    found: JsonObject = {}
    for variable in spec.get("variables") or ():
        value, problem = _value(variable["expression"], {**variables, "variables": found})
        if not problem:
            found[variable["name"]] = value
    return found


def _value(expression: str, variables: JsonObject) -> tuple[object, str]:
    """Return the value of an expression, or why it has none."""
    try:
        return compile_untyped(expression, VARIABLES)(variables), ""
    except (RuleTypeError, EvaluationError) as problem:
        return None, f"expression '{expression}' resulted in error: {problem}"


def _message(validation: JsonObject, variables: JsonObject) -> str:
    if validation.get("messageExpression"):
        text, problem = _value(validation["messageExpression"], variables)
        if not problem and isinstance(text, str) and text.strip() and "\n" not in text:
            return text.strip()
    return str(validation.get("message") or f"failed expression: {validation['expression'].strip()}").strip()


def _denied(write: Write, message: str, refusal: Refusal) -> ApiError:
    name = write.either["metadata"].get("name", "")
    problem = errors.forbidden(write.kind.plural, write.kind.group, name, message)
    reason = refusal.reason or "Invalid"
    problem.status |= {"reason": reason, "code": _CODES.get(reason, 422)}
    problem.status["details"]["causes"] = [{"message": message}]
    return problem
