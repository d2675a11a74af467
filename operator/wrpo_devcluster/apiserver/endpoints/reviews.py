"""Reviews and token requests, which are evaluated but not stored."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.apis.request import Context, User
from wrpo_devcluster.apiserver.auth.rbac import Attributes
from wrpo_devcluster.apiserver.auth.tokens import ISSUER, TokenError
from wrpo_devcluster.apiserver.fieldmanager import managed
from wrpo_devcluster.apiserver.registry.decode import decode
from wrpo_devcluster.apiserver.schema import codec
from wrpo_devcluster.apiserver.schema.kinds import Kind, Target
from wrpo_devcluster.apiserver.services import Services
from wrpo_devcluster.client import JsonObject

_MINIMUM_S, _MAXIMUM_S = 600, 1 << 32


def review(services: Services, kind: Kind, namespace: str | None, body: Any, context: Context) -> JsonObject:
    """Evaluate a review of kind `kind`."""
    obj = decode(kind, body, context)
    if kind.kind == "SelfSubjectReview":
        obj["metadata"] = {"creationTimestamp": services.pipeline.now()}
    elif kind.kind != "SelfSubjectRulesReview":
        obj["metadata"]["managedFields"] = _owners(services, kind, obj, context, "")
    if kind.namespaced:
        obj["metadata"].setdefault("namespace", namespace)
    answer = {
        "TokenReview": _token_review,
        "SelfSubjectReview": _self_review,
        "SelfSubjectAccessReview": _self_access,
        "SubjectAccessReview": _access,
        "LocalSubjectAccessReview": _access,
        "SelfSubjectRulesReview": _rules,
    }[kind.kind]
    if kind.kind == "LocalSubjectAccessReview":
        wanted = (obj["spec"].get("resourceAttributes") or {}).get("namespace")
        if wanted != namespace:
            cause = errors.invalid_field(
                "spec.resourceAttributes.namespace", wanted, f"must match metadata.namespace: {namespace}"
            )
            raise errors.invalid(kind.kind, kind.group, "", [cause])
    obj["status"] = answer(services, obj.get("spec", {}), context)
    if kind.kind == "SelfSubjectRulesReview":
        obj["spec"] = {}
    return obj


def _owners(services: Services, kind: Kind, obj: JsonObject, context: Context, subresource: str) -> list[JsonObject]:
    """Return the managedFields of a reply, which has some although it is not stored."""
    key = managed.ManagerKey(context.manager, "Update", kind.api_version, subresource)
    before = codec.zero(kind.node)
    now = services.pipeline.now()
    return managed.dump(managed.record_update(kind.node, before, obj, key, now=now))


def _user_info(user: User) -> JsonObject:
    found: JsonObject = {"username": user.name}
    if user.uid:
        found["uid"] = user.uid
    if user.groups:
        found["groups"] = list(user.groups)
    if user.extra:
        found["extra"] = {name: list(values) for name, values in user.extra}
    return found


def _token_review(services: Services, spec: JsonObject, _context: Context) -> JsonObject:
    token = spec.get("token", "")
    if not token:
        raise errors.bad_request("token is required for TokenReview in authentication")
    asked = spec.get("audiences") or [ISSUER]
    if token == services.admin_token:
        return {
            "authenticated": True,
            "user": {"username": "admin", "groups": ["system:masters", "system:authenticated"]},
        }
    try:
        user, audiences = services.tokens.verify(token, asked)
    except TokenError as problem:
        return {"user": {}, "error": str(problem)}
    return {"authenticated": True, "user": _user_info(user), "audiences": audiences}


def _self_review(_services: Services, _spec: JsonObject, context: Context) -> JsonObject:
    return {"userInfo": _user_info(context.user)}


def _attributes(kind: str, spec: JsonObject, faults: list[errors.Cause]) -> Attributes:
    """Return the attributes of a review; raise Invalid with `faults` and those of its attributes."""
    resource, path = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    if resource is not None and path is not None:
        why = "cannot be specified in combination with resourceAttributes"
        faults = [*faults, errors.invalid_field("spec.nonResourceAttributes", path, why)]
    elif resource is None and path is None:
        why = "exactly one of nonResourceAttributes or resourceAttributes must be specified"
        faults = [*faults, errors.invalid_field("spec.resourceAttributes", None, why)]
    if faults:
        raise errors.invalid(kind, "authorization.k8s.io", "", faults)
    if resource is None:
        assert path is not None
        return Attributes(path.get("verb", ""), path=path.get("path", ""))
    names = ("verb", "group", "resource", "subresource", "namespace", "name")
    return Attributes(*(resource.get(name, "") for name in names))


def _self_access(services: Services, spec: JsonObject, context: Context) -> JsonObject:
    return {"allowed": services.authorizer.allowed(context.user, _attributes("SelfSubjectAccessReview", spec, []))}


def _access(services: Services, spec: JsonObject, _context: Context) -> JsonObject:
    user = User(spec.get("user", ""), tuple(spec.get("groups") or ()), spec.get("uid", ""))
    faults = []
    if not user.name and not user.groups:
        faults.append(errors.invalid_field("spec.user", "", "at least one of user or group must be specified"))
    return {"allowed": services.authorizer.allowed(user, _attributes("SubjectAccessReview", spec, faults))}


def _rules(services: Services, spec: JsonObject, context: Context) -> JsonObject:
    if not spec.get("namespace"):
        raise errors.bad_request("no namespace on request")
    if context.user.privileged:
        held: list[JsonObject] = [
            {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]},
            {"verbs": ["*"], "nonResourceURLs": ["*"]},
        ]
    else:
        held = services.authorizer.rules(context.user, spec.get("namespace", ""))
    return {
        "resourceRules": [rule for rule in held if rule.get("resources")],
        "nonResourceRules": [rule for rule in held if rule.get("nonResourceURLs")],
        "incomplete": False,
    }


def token_request(services: Services, kind: Kind, account: Target, body: Any, context: Context) -> JsonObject:
    """Carry out POST serviceaccounts/NAME/token; `kind` is that of the TokenRequest in `body`."""
    namespace, name = account.namespace or "", account.name
    services.pipeline.get(account.kind, namespace, name)
    obj = decode(kind, body, context)
    owners = _owners(services, kind, obj, context, "token")
    spec = obj["spec"]
    seconds = spec["expirationSeconds"]
    if not _MINIMUM_S <= seconds <= _MAXIMUM_S:
        why = (
            "may not specify a duration less than 10 minutes"
            if seconds < _MINIMUM_S
            else "may not specify a duration larger than 2^32 seconds"
        )
        cause = errors.invalid_field("spec.expirationSeconds", seconds, why)
        raise errors.invalid("TokenRequest", "authentication.k8s.io", "", [cause])
    spec["audiences"] = spec.get("audiences") or [ISSUER]
    pod = _bound_pod(services, spec.get("boundObjectRef"), namespace, name)
    obj["metadata"] = {
        "name": name,
        "namespace": namespace,
        "uid": str(uuid.uuid4()),
        "creationTimestamp": services.pipeline.now(),
        "managedFields": owners,
    }
    token = services.tokens.issue(namespace, name, audiences=spec["audiences"], expires_s=seconds, pod=pod)
    expires = services.clock() + timedelta(seconds=seconds)
    obj["status"] = {"token": token, "expirationTimestamp": codec.format_time(expires)}
    return obj


_BOUND_KINDS = {"Pod": "pods", "Secret": "secrets", "Node": "nodes"}


def _bound_pod(
    services: Services, reference: JsonObject | None, namespace: str, account: str
) -> tuple[str, str] | None:
    """Check the object that a token is bound to; return name and uid if it is a pod."""
    if reference is None:
        return None
    plural = _BOUND_KINDS.get(reference.get("kind", ""))
    if plural is None or reference.get("apiVersion", "v1") != "v1":
        raise errors.bad_request(f"cannot bind token for object of type {reference.get('kind', '')}")
    kind = services.registry.core(plural)
    found = services.pipeline.get(kind, namespace if kind.namespaced else None, reference.get("name", ""))
    name, uid = found["metadata"]["name"], found["metadata"]["uid"]
    if plural == "pods" and found["spec"].get("serviceAccountName") != account:
        raise errors.bad_request(
            f"cannot bind token for serviceaccount {account!r} to pod running with different serviceaccount name."
        )
    if reference.get("uid") and reference["uid"] != uid:
        why = f"the UID in the bound object reference ({reference['uid']}) does not match the UID in record"
        raise errors.conflict(plural, "", name, why)
    return (name, uid) if plural == "pods" else None
