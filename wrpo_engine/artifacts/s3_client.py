"""Requests to one S3 bucket: boto3's client with retries, and errors that name the remedy.

botocore itself retries a request a few times with backoff and jitter. Around that, a request that may succeed later is
repeated until WRPO_STORAGE_PATIENCE_SECONDS have passed without progress: a restart of the
storage server must not end a stage that has run for hours.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from wrpo_engine.artifacts.s3_answers import ForeignAnswerError, UnreadableAnswerError, needed, refuse_foreign
from wrpo_engine.artifacts.s3_errors import Place, explain, is_missing, is_taken, is_unexplained, is_worth_waiting
from wrpo_engine.contract.storage import StorageField
from wrpo_engine.errors import ConfigError, WrpoError
from wrpo_engine.retrying import Backoff, Tries, retry, seconds_of

log = logging.getLogger("wrpo_engine")

T = TypeVar("T")
SHA256_KEY = "sha256"
"""Metadata of every object that is written: of the whole object, which S3's own checksum is not for large ones."""
_MAX_CONNECTIONS = 32
_FIRST_DELAY_S = 0.5
_BACKOFF = Backoff(first_s=_FIRST_DELAY_S, longest_s=20.0)
_STOPPING_PATIENCE_S = 20.0
_CREDENTIALS_S = 10.0
_PAGE_OF_DELETIONS = 1000


class S3Address(Protocol):
    """Address of a bucket and a prefix in it."""

    @property
    def uri(self) -> str:
        """s3://BUCKET/PREFIX."""
        ...

    @property
    def endpoint(self) -> str | None:
        """URL of the server; None: AWS."""
        ...

    @property
    def region(self) -> str | None:
        """Region of the bucket; None: the one of the environment."""
        ...

    @property
    def addressing_style(self) -> str | None:
        """`path` or `virtual`; None: the AWS configuration's."""
        ...


@dataclass(frozen=True, slots=True)
class S3Location:
    """A bucket that a user of a command names: any that S3 has, unlike those that an experiment may name."""

    uri: str
    endpoint: str | None = None
    region: str | None = None
    addressing_style: str | None = None


@dataclass(frozen=True, slots=True)
class Patience:
    """Time limits for the retries of a request, in seconds."""

    seconds: float = 300.0
    """In all, after the first reply of the server."""
    first_seconds: float = 30.0
    """Before the first reply of the server: without one, the endpoint is probably wrong."""
    timeout_s: float = 60.0
    """Without a byte from the server, in one try."""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Patience:
        """Read the limits from WRPO_STORAGE_PATIENCE_SECONDS and WRPO_STORAGE_TIMEOUT_SECONDS."""
        seconds = seconds_of(environ, "WRPO_STORAGE_PATIENCE_SECONDS", cls().seconds)
        timeout_s = seconds_of(environ, "WRPO_STORAGE_TIMEOUT_SECONDS", cls().timeout_s)
        return cls(seconds, min(seconds, cls().first_seconds), timeout_s)


class Outcome(Exception):  # noqa: N818 (a reply, not a fault)
    """An outcome of a request that its caller handles."""


class ConditionFailed(Outcome):
    """If-Match or If-None-Match did not hold."""


class UnsupportedConditionError(Outcome):
    """The server does not support conditional writes."""


@dataclass(frozen=True, slots=True)
class Stat:
    """An object as the server describes it."""

    size: int
    etag: str
    sha256: str | None
    modified: datetime


def stat_of(answer: Any) -> Stat:
    """Return the metadata of an object in a reply to HEAD, or to GET of the whole object."""
    metadata = answer.get("Metadata", {})
    return Stat(
        size=int(needed(answer, "ContentLength")),
        etag=needed(answer, "ETag"),
        sha256=metadata.get(SHA256_KEY),
        modified=needed(answer, "LastModified"),
    )


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of a listing."""

    key: str
    size: int
    etag: str
    modified: datetime


def has_role(environ: Mapping[str, str]) -> bool:
    """Return whether credentials may come from a role of the pod; keys in its environment are there or not."""
    has_keys = bool(environ.get("AWS_ACCESS_KEY_ID") or environ.get("AWS_SECRET_ACCESS_KEY"))
    return not has_keys and environ.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true"


def wait_for_credentials(
    find: Callable[[], object],
    *,
    seconds: float,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Look for credentials again for a while: what gives a pod its role may start after the pod.

    None in the end is an error of the first request. A client keeps what was found when it was made, so it is not made
    before.
    """
    from botocore.exceptions import CredentialRetrievalError

    since = monotonic()
    while True:
        is_last = monotonic() - since + _FIRST_DELAY_S > seconds
        try:
            if find() is not None or is_last:
                return
        except CredentialRetrievalError:
            if is_last:
                raise
        sleep(_FIRST_DELAY_S)


def is_loopback(endpoint: str | None) -> bool:
    """Return whether the server is on this machine."""
    host = urlsplit(endpoint or "").hostname or ""
    return host in {"localhost", "::1"} or host.startswith("127.")


def make_client(storage: S3Address, environ: Mapping[str, str], timeout_s: float) -> Any:
    """Return boto3's client. Credentials and AWS_CA_BUNDLE come from the process's environment, as in all AWS tools."""
    try:
        import boto3
        import botocore.session
        from botocore.config import Config
    except ImportError as error:
        raise ConfigError(
            StorageField.S3, storage.uri, "boto3 is not installed here", "Run `pip install boto3`."
        ) from error

    profile = botocore.session.Session()
    session = boto3.session.Session(botocore_session=profile)
    wait_for_credentials(session.get_credentials, seconds=_CREDENTIALS_S if has_role(environ) else 0.0)
    config = Config(
        retries={
            "mode": environ.get("AWS_RETRY_MODE", "standard"),
            "total_max_attempts": int(environ.get("AWS_MAX_ATTEMPTS", "4")),
        },
        connect_timeout=min(10.0, timeout_s),
        read_timeout=timeout_s,
        max_pool_connections=_MAX_CONNECTIONS,
        s3={"addressing_style": addressing_style(storage, profile.get_config_variable("s3"))},
        tcp_keepalive=True,
        # boto3 would ask HTTP_PROXY's proxy for a server of this very machine.
        proxies={} if is_loopback(storage.endpoint) else None,
        # The experiment decides where artifacts are stored, not the environment of one pod: another pod, the operator's
        # idea of who shares what, and an administrator's limits would take them to lie elsewhere.
        ignore_configured_endpoint_urls=True,
    )
    client = session.client(
        "s3",
        endpoint_url=storage.endpoint,
        region_name=storage.region or session.region_name or "us-east-1",
        config=config,
    )
    # By this name botocore asks it before its own handler, which turns a page with status 200 into a status 500.
    client.meta.events.register_first("before-parse.*.*", refuse_foreign)
    return client


def addressing_style(storage: S3Address, configured: Any) -> str:
    """Return how buckets are addressed: as `storage` says, else as the AWS configuration's section `s3` says.

    By default, servers at an endpoint get the bucket in the path: as a host name it needs a DNS entry per bucket, which
    few installations have. AWS itself gets what botocore chooses.
    """
    if storage.addressing_style is not None:
        return storage.addressing_style.lower()
    own = configured.get("addressing_style") if isinstance(configured, Mapping) else None
    if own is None:
        return "path" if storage.endpoint else "auto"
    if own not in {"path", "virtual", "auto"}:
        raise ConfigError(
            "s3.addressing_style", own, "the AWS configuration may say path, virtual or auto", "Correct the profile."
        )
    return str(own)


@dataclass
class S3Bucket:
    """A bucket and the prefix in it that is the storage root. Names are relative to the prefix."""

    client: Any
    bucket: str
    prefix: str
    patience: Patience = field(default_factory=Patience)
    is_stopping: Callable[[], bool] = lambda: False
    sleep: Callable[[float], None] = time.sleep
    monotonic: Callable[[], float] = time.monotonic
    _has_answered: bool = False

    @classmethod
    def open(cls, storage: S3Address, environ: Mapping[str, str], is_stopping: Callable[[], bool]) -> S3Bucket:
        """Return the bucket of a storage without a request; ConfigError or StorageError if no client can be made."""
        bucket, _, prefix = storage.uri.removeprefix("s3://").partition("/")
        patience = Patience.of(environ)
        uri = storage.uri
        try:
            client = make_client(storage, environ, patience.timeout_s)
        except ConfigError:
            raise
        except Exception as error:
            raise explain(error, Place(uri, storage.endpoint or "AWS", bucket), f"use {uri}") from error
        return cls(client, bucket, prefix.strip("/"), patience, is_stopping)

    @property
    def root_uri(self) -> str:
        """s3://BUCKET/PREFIX of the storage root, without a slash at the end."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def key(self, name: str) -> str:
        """Return the object key of a name below the storage root."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def uri(self, name: str) -> str:
        """Return the s3:// URI of a name below the storage root."""
        return f"s3://{self.bucket}/{self.key(name)}"

    @property
    def place(self) -> Place:
        """Names of the storage root, the endpoint and the bucket, for error messages."""
        return Place(self.root_uri, str(self.client.meta.endpoint_url), self.bucket)

    def call(self, action: str, request: Callable[[], T], *, progress: Callable[[], int] = lambda: 0) -> T:
        """Make a request until it succeeds, fails for good, or the time for retries ends. Progress restarts it."""

        def next_pause(error: Exception, tries: Tries) -> float:
            if not is_worth_waiting(error):
                self._raise_final(error, action)
                raise error
            pause = _BACKOFF.pause(tries.failed)
            if tries.waited_s + pause > self._patience_s():
                raise explain(error, self.place, action) from error
            return pause

        def wait(error: Exception, pause: float) -> None:
            log.warning("cannot %s now (%s); retrying in %.1f s", action, error, pause)
            self.sleep(pause)

        answer = retry(request, next_pause=next_pause, wait=wait, progress=progress, monotonic=self.monotonic)
        self._has_answered = True
        return answer

    def _patience_s(self) -> float:
        seconds = self.patience.seconds if self._has_answered else self.patience.first_seconds
        return min(seconds, _STOPPING_PATIENCE_S) if self.is_stopping() else seconds

    def _raise_final(self, error: Exception, action: str) -> None:
        """Raise our error for one of S3's; return for one of this machine or of WRPO."""
        from botocore.exceptions import BotoCoreError, ClientError

        if isinstance(error, ClientError):
            # It refused, but it is reachable.
            self._has_answered = True
            if is_taken(error):
                raise ConditionFailed(action) from error
        if isinstance(error, BotoCoreError | ClientError | ForeignAnswerError | UnreadableAnswerError):
            raise explain(error, self.place, action) from error
        if not isinstance(error, OSError | WrpoError | Outcome):
            # botocore's parsers raise arbitrary exceptions for a reply that is not S3's.
            unreadable = UnreadableAnswerError(f"{type(error).__name__}: {error}")
            raise explain(unreadable, self.place, action) from error

    def stat(self, name: str) -> Stat | None:
        """Return the metadata of an object, or None if it does not exist."""

        def request() -> Stat | None:
            try:
                return stat_of(self.client.head_object(Bucket=self.bucket, Key=self.key(name)))
            except self.client.exceptions.ClientError as error:
                if is_missing(error):
                    return None
                if is_unexplained(error):
                    # A refusal with a body says why; without one the right to read this object is missing.
                    self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.key(name), MaxKeys=1)
                raise

        return self.call(f"read {self.uri(name)}", request)

    def read(self, name: str) -> bytes | None:
        """Return a small object, or None if it does not exist."""

        def request() -> bytes | None:
            try:
                answer = self.client.get_object(Bucket=self.bucket, Key=self.key(name))
            except self.client.exceptions.ClientError as error:
                if is_missing(error):
                    return None
                raise
            content: bytes = answer["Body"].read()
            return content

        return self.call(f"read {self.uri(name)}", request)

    def put(self, name: str, content: bytes, *, only_if_absent: bool = False, sha256: str | None = None) -> None:
        """Write a small object, with a checksum that the server compares.

        ConditionFailed if it should be absent and is there; UnsupportedConditionError if the server cannot check it.
        """
        arguments = {**self.checksum_arguments(), **self.metadata(sha256)}

        def request() -> None:
            self.conditional(self.client.put_object, name, only_if_absent=only_if_absent, Body=content, **arguments)

        self.call(f"write {self.uri(name)}", request)

    def conditional(self, operation: Callable[..., Any], name: str, *, only_if_absent: bool, **arguments: Any) -> Any:
        """Request an operation that creates an object, optionally only if none exists."""
        condition = {"IfNoneMatch": "*"} if only_if_absent else {}
        try:
            return operation(Bucket=self.bucket, Key=self.key(name), **arguments, **condition)
        except self.client.exceptions.ClientError as error:
            if only_if_absent and error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 501:
                raise UnsupportedConditionError from error
            raise

    @staticmethod
    def metadata(sha256: str | None) -> dict[str, Any]:
        """Return the arguments that store an object's sha256 as metadata; none without a digest."""
        return {} if sha256 is None else {"Metadata": {SHA256_KEY: sha256}}

    def checksum_arguments(self) -> dict[str, str]:
        """Return the argument that makes S3 verify uploads.

        Nothing where AWS_REQUEST_CHECKSUM_CALCULATION says when_required, for servers that know no such checksums.
        """
        wanted = self.client.meta.config.request_checksum_calculation
        return {} if wanted == "when_required" else {"ChecksumAlgorithm": "SHA256"}

    def listing(self, prefix: str = "") -> Iterator[Listed]:
        """Yield the objects whose names start with `prefix`, page by page; keys are names below the storage root."""
        token: str | None = None
        while True:
            entries, token = self._page(prefix, token)
            yield from entries
            if token is None:
                return

    def check(self) -> None:
        """Find wrong credentials, a missing bucket or no right to list by the smallest request."""
        self._page("", None, max_keys=1)

    def _page(self, prefix: str, token: str | None, *, max_keys: int = 1000) -> tuple[list[Listed], str | None]:
        """Return a page's objects and the token of the next page, if there is one."""
        after = {"ContinuationToken": token} if token else {}

        def request() -> tuple[list[Listed], str | None]:
            page = self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.key(prefix), MaxKeys=max_keys, **after)
            entries = [self._listed(entry) for entry in page.get("Contents", ())]
            return entries, needed(page, "NextContinuationToken") if page.get("IsTruncated") else None

        return self.call(f"list {self.uri(prefix)}", request)

    def _listed(self, entry: Mapping[str, Any]) -> Listed:
        return Listed(
            key=needed(entry, "Key")[len(self.key("")) :],
            size=int(needed(entry, "Size")),
            etag=needed(entry, "ETag"),
            modified=needed(entry, "LastModified"),
        )

    def delete(self, names: list[str]) -> None:
        """Delete objects; missing ones are not an error."""
        for start in range(0, len(names), _PAGE_OF_DELETIONS):
            self._delete_page(names[start : start + _PAGE_OF_DELETIONS])

    def _delete_page(self, names: list[str]) -> None:
        from botocore.exceptions import ClientError

        action = f"delete {self.uri(names[0])}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        objects = {"Objects": [{"Key": self.key(name)} for name in names], "Quiet": True}
        answer = self.call(action, lambda: self.client.delete_objects(Bucket=self.bucket, Delete=objects))
        for failed in answer.get("Errors", ()):
            raise explain(ClientError({"Error": dict(failed)}, "DeleteObjects"), self.place, action)

    def unfinished_uploads(self) -> list[Any]:
        """Return S3's entries of multipart uploads below the storage root that were started and never completed."""

        def request() -> list[Any]:
            pages = self.client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=self.key("")
            )
            return [entry for page in pages for entry in page.get("Uploads") or ()]

        return self.call(f"list uploads of {self.root_uri}", request)

    def abort(self, name: str, upload_id: str) -> None:
        """Abort a multipart upload, which frees the space of its parts."""
        self.call(
            f"abort an upload of {self.uri(name)}",
            lambda: self.client.abort_multipart_upload(Bucket=self.bucket, Key=self.key(name), UploadId=upload_id),
        )
