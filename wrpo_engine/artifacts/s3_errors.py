"""Translation of S3 errors: retry, or name the wrong field and the remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wrpo_engine.artifacts.s3_answers import ForeignAnswerError, UnreadableAnswerError
from wrpo_engine.contract.storage import StorageField
from wrpo_engine.errors import ConfigError, StorageError, TemporaryError, WrpoError, first_line

_WAIT_CODES = frozenset(
    {
        "SlowDown",
        "ServiceUnavailable",
        "InternalError",
        "InternalFailure",
        "RequestTimeout",
        "RequestTimeoutException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "ConditionalRequestConflict",
        "OperationAborted",
        # The server's checksum of what arrived is not ours: it was altered on the way.
        "BadDigest",
        "XAmzContentChecksumMismatch",
        "IncompleteBody",
    }
)
_WAIT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_KEY_CODES = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthFailure"})
_EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_REGION_CODES = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})
_FULL_CODES = frozenset({"QuotaExceeded", "QuotaExceededException", "XMinioStorageFull", "InsufficientStorage"})
_STYLE_CODES = frozenset({"SecondLevelDomainForbidden", "PathStyleDomainForbidden", "InvalidPathAccess"})
"""Of stores that refuse the bucket in the path: Alibaba's, Tencent's and Volcengine's."""
_STYLE_WORDS = ("path-style", "path style", "virtual host", "virtual-host")
_FORBIDDEN_CODES = frozenset({"AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden"})
PERMISSIONS = "s3:ListBucket, s3:GetObject, s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request went: for messages."""

    uri: str
    endpoint: str
    bucket: str


def code_and_status(error: Any) -> tuple[str, int]:
    """Return S3's error code and the HTTP status of a botocore ClientError; a code is "" where there is only a status.

    Replies to HEAD have no body, so their code is the status itself.
    """
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return ("", int(code)) if code.isdigit() else (code, status)


def is_missing(error: Exception) -> bool:
    """Return whether the object does not exist; a missing bucket is a different error."""
    if not hasattr(error, "response"):
        return False
    code, status = code_and_status(error)
    return code == "NoSuchKey" or (status == 404 and code in {"", "NotFound"})


def is_taken(error: Exception) -> bool:
    """Return whether a condition of the request (If-Match, If-None-Match) did not hold."""
    return hasattr(error, "response") and code_and_status(error)[1] == 412


def is_unexplained(error: Exception) -> bool:
    """Return whether a reply to HEAD gives no reason: it may be the credentials, the clock, a missing permission."""
    return hasattr(error, "response") and code_and_status(error) in {("", 400), ("", 403)}


def is_worth_waiting(error: Exception) -> bool:
    """Return whether the same request may succeed a little later."""
    from botocore import exceptions as boto
    from urllib3.exceptions import HTTPError

    if isinstance(error, boto.ClientError):
        code, status = code_and_status(error)
        return code in _WAIT_CODES or (status in _WAIT_STATUS and code not in _FULL_CODES)
    if isinstance(error, boto.SSLError):
        return "CERTIFICATE_VERIFY_FAILED" not in str(error)
    kinds = (
        boto.HTTPClientError,
        boto.ConnectionError,
        boto.CredentialRetrievalError,
        boto.IncompleteReadError,
        boto.ResponseStreamingError,
        HTTPError,
        ConnectionError,
        TimeoutError,
    )
    return isinstance(error, kinds) and not isinstance(error, boto.InvalidProxiesConfigError)


def explain(error: Exception, place: Place, action: str) -> WrpoError:
    """Return the engine's error for one of S3. `action` completes "cannot ...", e.g. "write s3://bucket/key"."""
    from botocore import exceptions as boto

    what = f"cannot {action}"
    if isinstance(error, boto.ClientError):
        return _of_answer(error, place, what)
    if isinstance(error, ForeignAnswerError):
        return ConfigError(
            StorageField.S3_ENDPOINT, place.endpoint, f"{what}: the endpoint {error}", error.hint, code="StorageNotS3"
        )
    if isinstance(error, UnreadableAnswerError):
        return StorageError(
            f"{what}: the server's reply cannot be read ({first_line(error)})",
            code="StorageAnswerInvalid",
            field=StorageField.S3_ENDPOINT,
            hint="Check that the endpoint is an S3 API and that no proxy changes its replies.",
        )
    if isinstance(error, boto.SSLError):
        return ConfigError(
            StorageField.S3_ENDPOINT,
            place.endpoint,
            f"{what}: the server's certificate was not accepted ({first_line(error)})",
            "Give the pods the CA that signed it: mount its PEM file by podTemplate and set AWS_CA_BUNDLE to its path.",
            code="StorageTls",
        )
    if isinstance(error, boto.CredentialRetrievalError):
        return TemporaryError(
            f"{what}: the service that gives the pod its credentials sends no valid reply ({first_line(error)})",
            code="StorageCredentials",
            field=StorageField.S3_CREDENTIALS,
            hint="Check the role of the pods' service account and the agent that serves it. The stage is retried.",
        )
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return ConfigError(
            StorageField.S3_CREDENTIALS,
            "<none found>",
            f"{what}: {first_line(error)}",
            "Name a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the pods' service account a role.",
            code="StorageCredentials",
        )
    if isinstance(error, ValueError | boto.InvalidRegionError | boto.ParamValidationError):
        said = f"{what}: {first_line(error)}"
        return ConfigError(StorageField.S3, place.uri, said, "Correct it.", code="InvalidConfig")
    return TemporaryError(
        f"{what}: {place.endpoint} sends no valid reply ({first_line(error)})",
        code="StorageUnreachable",
        field=StorageField.S3_ENDPOINT,
        hint="Check that the endpoint is right (scheme, host, port), that the server runs, and that network policies "
        "let pods reach it. The stage is retried and resumes where it stopped.",
    )


def _of_answer(error: Any, place: Place, what: str) -> WrpoError:
    code, status = code_and_status(error)
    said = str(error.response.get("Error", {}).get("Message", "")).strip().rstrip(".")
    answer = f"{what}: the server says {code or f'HTTP {status}'}" + (f" ({said})" if said else "")
    if code in _EXPIRED_CODES:
        return ConfigError(
            StorageField.S3_CREDENTIALS,
            "<in the Secret>",
            f"the credentials have expired: {answer}",
            "Put new ones into the Secret and start the stage again, or use a role of the pods' service account, "
            "which renews itself.",
            code="StorageCredentialsExpired",
        )
    if code in _KEY_CODES:
        return ConfigError(
            StorageField.S3_CREDENTIALS,
            "<in the Secret>",
            f"the credentials are wrong: {answer}",
            "Correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN, if any) in the Secret.",
            code="StorageCredentials",
        )
    if code == "RequestTimeTooSkewed":
        return TemporaryError(
            f"the node's clock is wrong: {answer}",
            code="StorageClockSkew",
            field=StorageField.S3,
            hint="Synchronise the clocks of the nodes and of the S3 server (NTP); signatures hold for 15 minutes.",
        )
    if code == "NoSuchBucket" or (status == 404 and code in {"", "NotFound"}):
        return ConfigError(
            StorageField.S3_URI,
            place.uri,
            f"{what}: there is no bucket {place.bucket}",
            f"Create the bucket, or correct its name, {StorageField.S3_ENDPOINT} or {StorageField.S3_REGION}.",
            code="StorageMissing",
        )
    if code in _REGION_CODES or status in {301, 307}:
        return ConfigError(
            StorageField.S3_REGION, "<as set>", f"the bucket is in another region: {answer}", "Set the bucket's region."
        )
    if code in _FULL_CODES or status == 507:
        return StorageError(
            f"the storage at {place.uri} is full: {answer}",
            code="StorageFull",
            field=StorageField.S3,
            hint="Raise the quota, or remove artifacts that no experiment refers to (`wrpo artifacts gc`).",
        )
    if code in _STYLE_CODES or (status in {400, 403} and any(words in said.lower() for words in _STYLE_WORDS)):
        return ConfigError(
            StorageField.S3_ADDRESSING_STYLE,
            "Path",
            f"the server requires the bucket in the host name: {answer}",
            f"Set {StorageField.S3_ADDRESSING_STYLE}: Virtual; outside a cluster, `addressing_style = virtual` in the "
            "section `s3 =` of the AWS configuration file.",
            code="StorageAddressing",
        )
    if code in _FORBIDDEN_CODES or status in {401, 403}:
        return ConfigError(
            StorageField.S3_URI,
            place.uri,
            f"access is denied: {answer}",
            f"The credentials need {PERMISSIONS} on the bucket and this prefix; check policies, and the key itself.",
            code="StorageForbidden",
        )
    if code in _WAIT_CODES or status in _WAIT_STATUS:
        return TemporaryError(
            f"{answer}, also after waiting",
            code="StorageBusy",
            field=StorageField.S3,
            hint="The server is overloaded or down. The stage is retried and resumes where it stopped. If this "
            "persists, lower shards or request a higher rate limit.",
        )
    return StorageError(answer, code="StorageUnavailable", field=StorageField.S3, hint="See the server's log.")
