"""metav1.Status objects of refused requests, in kube-apiserver's wording."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from wrpo_devcluster.client import ApiError, JsonObject


@dataclass(frozen=True, slots=True)
class Cause:
    """A fault of a field; `reason` is a metav1 cause reason such as `FieldValueInvalid`."""

    reason: str
    field: str
    message: str

    def as_dict(self) -> JsonObject:
        """Return the cause as an entry of a Status's `details.causes`."""
        return {"reason": self.reason, "message": self.message, "field": self.field}


def invalid_field(field: str, value: object, why: str) -> Cause:
    """Return the cause of a value that breaks a rule; `why` states the rule."""
    return Cause("FieldValueInvalid", field, f"Invalid value: {_literal(value)}: {why}")


def required_field(field: str, why: str = "") -> Cause:
    """Return the cause of a missing value."""
    return Cause("FieldValueRequired", field, f"Required value: {why}" if why else "Required value")


def forbidden_field(field: str, why: str) -> Cause:
    """Return the cause of a field that must not be set here."""
    return Cause("FieldValueForbidden", field, f"Forbidden: {why}")


def duplicate_field(field: str, value: object) -> Cause:
    """Return the cause of a value that occurs twice where values are unique."""
    return Cause("FieldValueDuplicate", field, f"Duplicate value: {_literal(value)}")


def unsupported_field(field: str, value: object, supported: Iterable[object]) -> Cause:
    """Return the cause of a value that is none of the supported ones."""
    choices = ", ".join(_literal(choice) for choice in supported)
    return Cause("FieldValueNotSupported", field, f"Unsupported value: {_literal(value)}: supported values: {choices}")


def _literal(value: object) -> str:
    import json

    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)


def status(code: int, reason: str, message: str, details: JsonObject | None = None) -> JsonObject:
    """Return a metav1.Status that reports a failure; without details it has none."""
    body: JsonObject = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "code": code,
    }
    if reason:
        body["reason"] = reason
    if details is not None:
        body["details"] = details
    return body


_REASONS = {
    400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 405: "MethodNotAllowed",
    409: "Conflict", 410: "Expired", 413: "RequestEntityTooLarge", 415: "UnsupportedMediaType", 422: "Invalid",
    429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable", 504: "Timeout",
}  # fmt: skip


def error(code: int, reason: str, message: str, details: JsonObject | None = None) -> ApiError:
    """Return an error whose Status has these fields."""
    return ApiError(status(code, reason, message, details))


def _details(name: str, group: str, kind: str) -> JsonObject:
    return {key: value for key, value in (("name", name), ("group", group), ("kind", kind)) if value}


def qualified(plural: str, group: str) -> str:
    """Return the name of a resource or kind with its group, as messages show it: `jobs.batch`, or `pods`."""
    return f"{plural}.{group}" if group else plural


def not_found(plural: str, group: str, name: str) -> ApiError:
    """Return the 404 of a missing object."""
    message = f'{qualified(plural, group)} "{name}" not found'
    return error(404, "NotFound", message, _details(name, group, plural))


def already_exists(plural: str, group: str, name: str, *, is_leaving: bool = False) -> ApiError:
    """Return the 409 of a name in use; `is_leaving` if the object that has it is being deleted."""
    message = f'{qualified(plural, group)} "{name}" already exists'
    if is_leaving:
        message = f"object is being deleted: {message}"
    return error(409, "AlreadyExists", message, _details(name, group, plural))


def conflict(
    plural: str,
    group: str,
    name: str,
    why: str = "the object has been modified; please apply your changes to the latest version and try again",
) -> ApiError:
    """Return the 409 of a write to an object that has changed, or that `why` rules out."""
    message = f'Operation cannot be fulfilled on {qualified(plural, group)} "{name}": {why}'
    return error(409, "Conflict", message, _details(name, group, plural))


def invalid(kind: str, group: str, name: str, causes: list[Cause]) -> ApiError:
    """Return the 422 of an object that breaks the rules of its kind, with all causes."""
    texts = [f"{cause.field}: {cause.message}" for cause in causes]
    joined = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    details = _details(name, group, kind)
    details["causes"] = [cause.as_dict() for cause in causes]
    return error(422, "Invalid", f'{qualified(kind, group)} "{name}" is invalid: {joined}', details)


def bad_request(message: str) -> ApiError:
    """Return the 400 of a request that makes no sense as a whole."""
    return error(400, "BadRequest", message)


def forbidden(plural: str, group: str, name: str, why: str, *, causes: list[Cause] | None = None) -> ApiError:
    """Return the 403 of a request that authorization or admission refuses."""
    shown = f'{qualified(plural, group)} "{name}"' if name else qualified(plural, group)
    details = _details(name, group, plural)
    if causes:
        details["causes"] = [cause.as_dict() for cause in causes]
    return error(403, "Forbidden", f"{shown} is forbidden: {why}", details)


def unauthorized() -> ApiError:
    """Return the 401 of a request without valid credentials."""
    return error(401, "Unauthorized", "Unauthorized")


def unsupported_media_type(accepted: Iterable[str]) -> ApiError:
    """Return the 415 of a body in a form that is not accepted here."""
    listed = ", ".join(accepted)
    message = f"the body of the request was in an unknown format - accepted media types include: {listed}"
    return error(415, "UnsupportedMediaType", message)


def not_acceptable(accepted: Iterable[str]) -> ApiError:
    """Return the 406 of a request that asks for a reply in no form the server has."""
    listed = ", ".join(accepted)
    return error(406, "NotAcceptable", f"only the following media types are accepted: {listed}")


def method_not_allowed() -> ApiError:
    """Return the 405 of a verb that the resource does not serve."""
    return error(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")


def expired(message: str) -> ApiError:
    """Return the 410 of a version that the history no longer reaches."""
    return error(410, "Expired", message)


def internal(message: str) -> ApiError:
    """Return an error without a reason, as the real server gives for a few malformed requests."""
    return error(500, "", message)


def refused(code: int, message: str, *, retry_after_s: int) -> ApiError:
    """Return a refusal with the reason of its HTTP status. Retryable ones set Retry-After."""
    details: JsonObject = {"retryAfterSeconds": retry_after_s} if code in {429, 503, 504} else {}
    return error(code, _REASONS.get(code, "InternalError"), message, details)


def rejected_patch() -> ApiError:
    """Return the 422 of a JSON patch that does not apply to the object."""
    return error(422, "Invalid", "the server rejected our request due to an error in our request", {})
