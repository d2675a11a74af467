"""Servers that are not the S3 server that was meant, and ways to name a bucket."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.fault_proxy import Answer, FaultProxy, s3_error

from wrpo_engine.artifacts.s3 import S3Store
from wrpo_engine.artifacts.s3_client import (
    ConditionFailed,
    S3Bucket,
    S3Location,
    UnsupportedConditionError,
    addressing_style,
)
from wrpo_engine.artifacts.transfer import download_whole
from wrpo_engine.errors import ConfigError, StorageError, TemporaryError, WrpoError

Connect = Callable[..., S3Store]
PAGE = b"<!doctype html><html><body>Console</body></html>"
IMPATIENT = {"WRPO_STORAGE_PATIENCE_SECONDS": "0.2"}

REQUESTS: dict[str, Callable[[S3Bucket, Path], object]] = {
    "stat": lambda bucket, _: bucket.stat("some/object"),
    "read": lambda bucket, _: bucket.read("some/object"),
    "put": lambda bucket, _: bucket.put("some/object", b"x"),
    "list": lambda bucket, _: list(bucket.listing("some/object")),
    "delete": lambda bucket, _: bucket.delete(["some/object"]),
    "download": lambda bucket, path: download_whole(bucket, "some/object", path / "x", size=3),
    "uploads": lambda bucket, _: bucket.unfinished_uploads(),
}
ALL_REQUESTS = pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS.keys())


@ALL_REQUESTS
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_an_endpoint_that_redirects_is_told_with_where_to(
    connect: Connect, proxy: FaultProxy, tmp_path: Path, status: int, request_: Callable[[S3Bucket, Path], object]
) -> None:
    bucket = connect(endpoint=proxy.endpoint, **IMPATIENT).copies.bucket
    proxy.faults = [lambda request: Answer(status, headers={"Location": f"https://s3.example.org{request.path}"})]
    with pytest.raises(ConfigError) as error:
        request_(bucket, tmp_path)
    assert (error.value.exit_code, error.value.code) == (78, "StorageNotS3")
    assert error.value.field == "storage.s3.endpoint"
    assert "the endpoint redirects to https://s3.example.org/" in error.value.message
    assert "https for http" in str(error.value.hint)


@ALL_REQUESTS
@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, PAGE, {"Content-Type": "text/html; charset=utf-8"}),
        Answer(200, PAGE, {"Content-Type": "text/html"}),
        Answer(403, b"<html>login</html>", {"Content-Type": "text/html"}),
        Answer(404, b"<html>nothing here</html>", {"Content-Type": "text/html"}),
    ],
    ids=["console", "page", "login", "not found"],
)
def test_a_web_page_is_not_taken_for_a_busy_server_or_for_an_object(
    connect: Connect, proxy: FaultProxy, tmp_path: Path, answer: Answer, request_: Callable[[S3Bucket, Path], object]
) -> None:
    bucket = connect(endpoint=proxy.endpoint, **IMPATIENT).copies.bucket
    proxy.faults = [lambda _request: answer]
    with pytest.raises(ConfigError) as error:
        request_(bucket, tmp_path)
    assert (error.value.code, error.value.field) == ("StorageNotS3", "storage.s3.endpoint")
    assert "the endpoint replies with a web page" in error.value.message
    assert "Name the port of the S3 API" in str(error.value.hint)


def test_an_html_file_in_a_bucket_is_an_object(connect: Connect) -> None:
    bucket = connect().copies.bucket
    bucket.client.put_object(Bucket=bucket.bucket, Key=bucket.key("report.html"), Body=PAGE, ContentType="text/html")
    assert bucket.read("report.html") == PAGE
    stat = bucket.stat("report.html")
    assert stat is not None
    assert stat.size == len(PAGE)


def test_a_redirect_to_another_region_is_followed_or_told_as_such(connect: Connect, proxy: FaultProxy) -> None:
    bucket = connect(endpoint=proxy.endpoint, **IMPATIENT).copies.bucket
    moved = s3_error(301, "PermanentRedirect", "The bucket must be addressed at another endpoint")
    elsewhere = Answer(301, moved.body, {**moved.headers, "x-amz-bucket-region": "eu-west-1"})
    proxy.faults = [lambda _request: elsewhere]
    with pytest.raises(ConfigError) as error:
        bucket.read("some/object")
    assert error.value.field == "storage.s3.region"


FORBIDDEN_STYLES = [
    s3_error(403, "SecondLevelDomainForbidden", "Please use virtual hosted style to access."),
    s3_error(403, "PathStyleDomainForbidden", "The bucket you access is not allowed"),
    s3_error(400, "InvalidRequest", "Path-style requests are not supported by this endpoint"),
]


@pytest.mark.parametrize("answer", FORBIDDEN_STYLES, ids=["oss", "cos", "words"])
def test_a_store_that_forbids_paths_names_the_field_to_set(connect: Connect, proxy: FaultProxy, answer: Answer) -> None:
    bucket = connect(endpoint=proxy.endpoint, **IMPATIENT).copies.bucket
    proxy.faults = [lambda _request: answer]
    with pytest.raises(ConfigError) as error:
        bucket.read("some/object")
    assert (error.value.code, error.value.field) == ("StorageAddressing", "storage.s3.addressingStyle")
    assert "Set storage.s3.addressingStyle: Virtual" in str(error.value.hint)


@pytest.fixture
def names_below_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolve BUCKET.localhost, which not every machine does."""
    real = socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        is_ours = isinstance(host, str) and host.endswith(".localhost")
        return real("127.0.0.1" if is_ours else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.mark.usefixtures("names_below_localhost")
def test_a_bucket_is_named_in_the_host_where_the_field_says_so(proxy: FaultProxy) -> None:
    endpoint = f"http://localhost:{proxy.port}"
    storage = S3Location(uri="s3://some-bucket/x", endpoint=endpoint, addressing_style="Virtual")
    bucket = S3Bucket.open(storage, {}, lambda: False)
    proxy.faults = [lambda _request: Answer(200, b"hello", {"ETag": '"1"'})]
    assert bucket.read("some/object") == b"hello"
    (request,) = proxy.requests
    assert (request.headers["host"], request.path) == (f"some-bucket.localhost:{proxy.port}", "/x/some/object")


@pytest.mark.usefixtures("names_below_localhost")
def test_the_aws_configuration_file_says_how_to_address_buckets(
    proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    storage = S3Location(uri="s3://some-bucket/x", endpoint=f"http://localhost:{proxy.port}")
    proxy.faults = [lambda _request: Answer(200, b"hello", {"ETag": '"1"'})]
    S3Bucket.open(storage, {}, lambda: False).read("some/object")
    assert proxy.requests[0].headers["host"].startswith("some-bucket.localhost")


STYLES: dict[str, tuple[S3Location, Any, str]] = {
    "an endpoint": (S3Location(uri="s3://b/x", endpoint="http://h"), None, "path"),
    "AWS": (S3Location(uri="s3://b/x"), None, "auto"),
    "an endpoint and a profile": (
        S3Location(uri="s3://b/x", endpoint="http://h"),
        {"addressing_style": "auto"},
        "auto",
    ),
    "the field before the profile": (
        S3Location(uri="s3://b/x", endpoint="http://h", addressing_style="Path"),
        {"addressing_style": "virtual"},
        "path",
    ),
}


@pytest.mark.parametrize(("storage", "configured", "style"), STYLES.values(), ids=STYLES.keys())
def test_the_style_comes_from_the_field_then_the_profile_then_the_endpoint(
    storage: S3Location, configured: Any, style: str
) -> None:
    assert addressing_style(storage, configured) == style


def test_a_style_that_botocore_does_not_know_is_refused() -> None:
    with pytest.raises(ConfigError, match="may say path, virtual or auto"):
        addressing_style(S3Location(uri="s3://b/x"), {"addressing_style": "host"})


EXPECTED = (ConditionFailed, UnsupportedConditionError, ConfigError, StorageError, TemporaryError)
BODIES = [
    b"",
    b"\x00\xff\xfe",
    PAGE,
    b"{}",
    b"<",
    b"<?xml version='1.0'?><ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
    b"<ListBucketResult><Contents><Key>k</Key></Contents></ListBucketResult>",
    b"<ListBucketResult><Contents><Key>k</Key><Size>many</Size><ETag>1</ETag></Contents></ListBucketResult>",
    b"<ListBucketResult><Contents><LastModified>yesterday</LastModified></Contents></ListBucketResult>",
    b"<Error/>",
    b"<Error><Code>\xc3\x28</Code></Error>",
    b"<a>" * 20_000,
    b"<Error><Code>NoSuchKey</Code></Error>",
]
HEADERS: list[dict[str, str]] = [
    {},
    {"Content-Type": "application/xml"},
    {"Content-Type": "text/html"},
    {"ETag": '"1"'},
    {"ETag": '"1"', "Last-Modified": "yesterday"},
    {"ETag": '"1"', "Last-Modified": "Sun, 29 Nov 2026 00:00:00 GMT"},
    {"x-amz-bucket-region": "nowhere", "Location": ":::"},
    {"x-amz-checksum-sha256": "?"},
    {"x-amz-meta-sha256": "\xff"},
]
STATUSES = [200, 200, 204, 206, 301, 307, 400, 401, 403, 404, 405, 409, 411, 412, 416, 418, 500, 501, 503, 599]


def answer_with(answer: Answer, _request: Any) -> Answer:
    return answer


# botocore leaves a stream open that it cannot parse.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@ALL_REQUESTS
def test_no_answer_of_a_server_leaves_as_a_foreign_exception(
    connect: Connect, proxy: FaultProxy, tmp_path: Path, request_: Callable[[S3Bucket, Path], object]
) -> None:
    bucket = connect(endpoint=proxy.endpoint, WRPO_STORAGE_PATIENCE_SECONDS="0", AWS_MAX_ATTEMPTS="1").copies.bucket
    draw = random.Random(7)
    for _ in range(100):
        answer = Answer(draw.choice(STATUSES), draw.choice(BODIES), draw.choice(HEADERS))
        proxy.faults = [partial(answer_with, answer)]
        outcome = outcome_of(lambda: request_(bucket, tmp_path))
        assert outcome is None or isinstance(outcome, EXPECTED), f"{answer} became {outcome!r}"
        if isinstance(outcome, WrpoError):
            assert "some/object" in outcome.message or bucket.root_uri in outcome.message, answer
            assert outcome.hint, answer


def outcome_of(request: Callable[[], object]) -> Exception | None:
    try:
        request()
    except Exception as error:  # noqa: BLE001 - which class it is, is what is tested
        return error
    return None
