"""Fault injection: refuse, delay or break what matches, a number of times."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.schema.kinds import Kind
from wrpo_devcluster.client import ApiError, JsonObject

if TYPE_CHECKING:
    from wrpo_devcluster.apiserver.storage.store import Store

_REASONS = {
    400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 405: "MethodNotAllowed",
    409: "Conflict", 410: "Expired", 413: "RequestEntityTooLarge", 415: "UnsupportedMediaType", 422: "Invalid",
    429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable", 504: "Timeout",
}  # fmt: skip


@dataclass
class Fault:
    """One rule. Empty selectors match everything; the first matching rule with `times` left applies.

    `code` 0 only delays; otherwise requests are answered with that status after `delay_s`.
    """

    code: int = 500
    verb: str = ""
    group: str | None = None
    resource: str = ""
    namespace: str = ""
    name: str = ""
    user: str = ""
    times: int = 1
    delay_s: float = 0.0
    message: str = "injected fault"
    retry_after_s: int = 1

    def matches(self, user: str, verb: str, kind: Kind, namespace: str, name: str) -> bool:
        return (
            self.times > 0
            and self.verb in {"", verb}
            and self.group in {None, kind.group}
            and self.resource in {"", kind.plural}
            and self.namespace in {"", namespace}
            and self.name in {"", name}
            and self.user in {"", user}
        )


class Faults:
    """The rules in force."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rules: list[Fault] = []

    def inject(self, fault: Fault) -> Fault:
        """Add a rule; its `times` counts down, so the caller sees how often it applied."""
        self._rules.append(fault)
        return fault

    def clear(self) -> None:
        self._rules.clear()

    def rules(self) -> list[JsonObject]:
        return [{field.name: getattr(rule, field.name) for field in fields(rule)} for rule in self._rules]

    def close_watches(self, resource: str = "", *, gone: bool = False) -> int:
        """End the watches on a resource (`pods`, `jobs`; empty: all). With `gone`, resuming is answered 410."""
        return self._store.break_feeds(lambda key: resource in {"", key.rsplit("/", 1)[-1]}, gone=gone)

    async def check(self, user: str, verb: str, kind: Kind, namespace: str, name: str) -> None:
        """Apply the first rule that matches this request."""
        for rule in self._rules:
            if rule.matches(user, verb, kind, namespace, name):
                rule.times -= 1
                if rule.delay_s:
                    await asyncio.sleep(rule.delay_s)
                if rule.code:
                    raise self._error(rule)
                return

    @staticmethod
    def _error(rule: Fault) -> ApiError:
        details: JsonObject = {"retryAfterSeconds": rule.retry_after_s} if rule.code in {429, 503, 504} else {}
        return errors.error(rule.code, _REASONS.get(rule.code, "InternalError"), rule.message, details)

    def command(self, body: Any) -> JsonObject:
        """Carry out a body of the admin endpoint.

        `{"inject": {...}}` takes the fields of Fault, `{"closeWatches": {"resource": "pods", "gone": true}}` ends
        watches, `{"clear": true}` forgets the rules.
        """
        if not isinstance(body, dict):
            raise errors.bad_request("the body must be an object with inject, closeWatches or clear")
        answer: JsonObject = {}
        if body.get("clear"):
            self.clear()
        if "inject" in body:
            names = {field.name for field in fields(Fault)}
            unknown = sorted(set(body["inject"]) - names)
            if unknown:
                raise errors.bad_request(f"inject has unknown fields {unknown}: use some of {sorted(names)}")
            self.inject(Fault(**body["inject"]))
        if "closeWatches" in body:
            wanted = body["closeWatches"] or {}
            answer["closed"] = self.close_watches(wanted.get("resource", ""), gone=bool(wanted.get("gone")))
        return {**answer, "rules": self.rules()}
