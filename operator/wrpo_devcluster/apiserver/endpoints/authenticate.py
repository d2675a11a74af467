"""Authentication: bearer tokens, anonymous requests, impersonation."""

from __future__ import annotations

import hmac

from aiohttp import web

from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.apis.request import ADMIN, AUTHENTICATED, User
from wrpo_devcluster.apiserver.auth.rbac import Attributes
from wrpo_devcluster.apiserver.auth.tokens import ISSUER, TokenError
from wrpo_devcluster.apiserver.services import Services

ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))


def authenticate(services: Services, request: web.Request) -> User:
    """Return the user of a request; raise 401 for invalid credentials."""
    user = _bearer(services, request.headers.get("Authorization", ""))
    name = request.headers.get("Impersonate-User")
    if name:
        return _impersonate(services, user, name, request.headers.getall("Impersonate-Group", []))
    return user


def _bearer(services: Services, header: str) -> User:
    if not header:
        return ANONYMOUS
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise errors.unauthorized()
    if hmac.compare_digest(token.encode(), services.admin_token.encode()):
        return ADMIN
    try:
        return services.tokens.verify(token.strip(), [ISSUER])[0]
    except TokenError as problem:
        raise errors.unauthorized() from problem


def _impersonate(services: Services, user: User, name: str, groups: list[str]) -> User:
    if name.startswith("system:serviceaccount:") and name.count(":") == 3:
        _, _, namespace, account = name.split(":")
        asked = [Attributes("impersonate", "", "serviceaccounts", namespace=namespace, name=account)]
        groups = groups or ["system:serviceaccounts", f"system:serviceaccounts:{namespace}"]
    else:
        asked = [Attributes("impersonate", "", "users", name=name)]
    asked += [Attributes("impersonate", "", "groups", name=group) for group in groups]
    for attributes in asked:
        services.authorizer.check(user, attributes)
    return User(name, tuple(dict.fromkeys([*groups, AUTHENTICATED])))
