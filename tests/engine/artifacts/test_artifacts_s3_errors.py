"""Every way in which an S3 server fails users: one message each, with the field, the remedy and the right exit code."""

from __future__ import annotations

import itertools
import os
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import CredentialRetrievalError
from support.fault_proxy import Answer, Fault, FaultProxy, Request, s3_error, times
from support.patience import LIMIT_S
from support.s3_server import S3Server

from wrpo_devcluster.ports import free_ports
from wrpo_engine.artifacts.s3 import S3Store
from wrpo_engine.artifacts.s3_client import Patience, S3Bucket
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import ConfigError, StorageError, TemporaryError, WrpoError

REF = ArtifactRef(stage="sample/qwen", hash="00000000000000aa")
Connect = Callable[..., S3Store]
IMPATIENT = {"WRPO_STORAGE_PATIENCE_SECONDS": "0.2"}


def writer(store: S3Store) -> Any:
    return store.writer(REF, config={}, inputs={})


def fill(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def is_put(request: Request) -> bool:
    return request.method == "PUT"


def test_a_missing_bucket_is_named(connect: Connect) -> None:
    with pytest.raises(ConfigError) as error:
        connect(uri="s3://nobody-made-this/x")
    assert (error.value.exit_code, error.value.code, error.value.field) == (78, "StorageMissing", "storage.s3.uri")
    assert "there is no bucket nobody-made-this" in error.value.message


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_found_before_any_work(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "wrong")
    with pytest.raises(ConfigError) as error:
        connect()
    assert (error.value.exit_code, error.value.code) == (78, "StorageCredentials")
    assert error.value.field == "storage.s3.credentialsSecretName"
    assert "the credentials are wrong: cannot list s3://" in error.value.message


ANSWERS: dict[str, tuple[Answer, int, str, str, str]] = {
    "expired credentials": (
        s3_error(400, "ExpiredToken", "The provided token has expired."),
        78,
        "StorageCredentialsExpired",
        "storage.s3.credentialsSecretName",
        "the credentials have expired",
    ),
    "a wrong clock": (
        s3_error(403, "RequestTimeTooSkewed", "The difference between the request time and the current time is large"),
        75,
        "StorageClockSkew",
        "storage.s3",
        "the node's clock is wrong",
    ),
    "no permission": (
        s3_error(403, "AccessDenied", "Access Denied"),
        78,
        "StorageForbidden",
        "storage.s3.uri",
        "access is denied",
    ),
    "a bucket of another region": (
        s3_error(400, "AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong; expecting 'eu-west-1'"),
        78,
        "InvalidConfig",
        "storage.s3.region",
        "expecting 'eu-west-1'",
    ),
    "a full store": (
        s3_error(403, "QuotaExceeded", "bucket quota"),
        73,
        "StorageFull",
        "storage.s3",
        "is full",
    ),
    "an overloaded server": (
        s3_error(503, "SlowDown", "Please reduce your request rate."),
        75,
        "StorageBusy",
        "storage.s3",
        "also after waiting",
    ),
    "a gateway without its server": (
        Answer(502, b"<html>bad gateway</html>"),
        75,
        "StorageBusy",
        "storage.s3",
        "HTTP 502",
    ),
}


REQUESTS: dict[str, Callable[[S3Bucket], object]] = {
    "HEAD": lambda bucket: bucket.stat("some/object"),
    "GET": lambda bucket: bucket.read("some/object"),
    "PUT": lambda bucket: bucket.put("some/object", b"x"),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS.keys())
@pytest.mark.parametrize(("answer", "exit_code", "code", "field", "words"), ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_becomes_one_message(
    connect: Connect,
    proxy: FaultProxy,
    request_: Callable[[S3Bucket], object],
    answer: Answer,
    exit_code: int,
    code: str,
    field: str,
    words: str,
) -> None:
    bucket = connect(endpoint=proxy.endpoint, **IMPATIENT).copies.bucket
    proxy.faults = [times(99, answer)]
    with pytest.raises(WrpoError) as error:
        request_(bucket)
    assert (error.value.exit_code, error.value.code, error.value.field) == (exit_code, code, field)
    assert words in error.value.message
    assert "some/object" in error.value.message
    assert error.value.hint


def test_a_server_that_stays_busy_has_its_own_words_in_the_message(connect: Connect, proxy: FaultProxy) -> None:
    own = writer(connect(endpoint=proxy.endpoint, **IMPATIENT))
    proxy.faults = [times(99, s3_error(503, "SlowDown", "Please reduce your request rate."), when=is_put)]
    with pytest.raises(TemporaryError) as error:
        own.begin()
    place = f"{own.copies.bucket.root_uri}/sample/qwen/00000000000000aa/.started"
    assert error.value.message == (
        f"cannot write {place}: the server says SlowDown (Please reduce your request rate), also after waiting"
    )


def test_an_object_that_may_be_listed_but_not_read_is_named(connect: Connect, proxy: FaultProxy) -> None:
    bucket = connect(endpoint=proxy.endpoint).copies.bucket
    proxy.faults = [lambda request: s3_error(403, "AccessDenied") if request.method == "HEAD" else None]
    with pytest.raises(ConfigError, match=r"access is denied: cannot read s3://.*/some/object") as error:
        bucket.stat("some/object")
    assert error.value.code == "StorageForbidden"


def test_credentials_that_cannot_be_had_now_are_waited_for_and_then_temporary(connect: Connect) -> None:
    bucket, now = bucket_with_a_clock(connect, Patience(seconds=10))

    def request() -> None:
        raise CredentialRetrievalError(provider="web-identity", error_msg="connection refused")

    with pytest.raises(TemporaryError, match="the service that gives the pod its credentials") as error:
        bucket.call("read x", request)
    assert now[0] > 3
    assert (error.value.code, error.value.field) == ("StorageCredentials", "storage.s3.credentialsSecretName")


PASSING: dict[str, Callable[[], Fault]] = {
    "an overloaded server": lambda: times(3, s3_error(503, "SlowDown"), when=is_put),
    "an internal error": lambda: times(2, s3_error(500, "InternalError"), when=is_put),
    "an upload altered on the way": lambda: times(1, s3_error(400, "BadDigest"), when=is_put),
    "an answer that breaks off": lambda: times(1, Answer(cut_body_to=3), when=lambda r: r.method == "GET"),
    "a request that is denied a while": lambda: times(2, s3_error(429, "TooManyRequests"), when=is_put),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
def test_what_passes_is_waited_for(connect: Connect, proxy: FaultProxy, fault: Callable[[], Fault]) -> None:
    store = connect(endpoint=proxy.endpoint)
    store.copies.bucket.sleep = lambda _seconds: None
    proxy.faults = [fault()]
    own = writer(store)
    own.publish("rows", fill(b"hello"))
    own.commit(files=["rows"])
    read = connect("b").open(REF)
    assert read is not None
    assert read.file("rows").read_bytes() == b"hello"


def test_a_stalled_answer_is_asked_for_again_where_it_stopped(connect: Connect, proxy: FaultProxy) -> None:
    content = os.urandom(2 << 20)
    writer(connect("a")).publish("rows", fill(content))
    slow = times(1, Answer(stall_after=1 << 20, stall_s=60), when=lambda r: r.method == "GET" and "/rows" in r.path)
    proxy.faults = [slow]
    store = connect("b", endpoint=proxy.endpoint, WRPO_STORAGE_TIMEOUT_SECONDS="2")
    assert writer(store).fetch("rows").read_bytes() == content
    # A busy machine may stall once more by itself.
    assert len(proxy.ranges_asked("/rows")) >= 2


def test_a_server_that_refuses_connections_is_a_temporary_error(connect: Connect) -> None:
    (port,) = free_ports(1)
    with pytest.raises(TemporaryError) as error:
        connect(endpoint=f"http://127.0.0.1:{port}", **IMPATIENT)
    assert (error.value.exit_code, error.value.code, error.value.field) == (
        75,
        "StorageUnreachable",
        "storage.s3.endpoint",
    )
    assert f"http://127.0.0.1:{port} sends no valid reply" in error.value.message


def test_an_endpoint_that_is_no_address_is_a_bad_configuration(connect: Connect) -> None:
    with pytest.raises(ConfigError, match="Invalid endpoint"):
        connect(endpoint="not an address")


@pytest.fixture
def tls_endpoint(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A TLS server whose certificate nobody knows, and the certificate."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files],
        check=True,
        capture_output=True,
    )

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<ListBucketResult></ListBucketResult>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(HTTPServer):
        def handle_error(self, *_: Any) -> None:
            """A client that refuses the certificate hangs up: that is the test."""

    server = Quiet(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}", certificate
    server.shutdown()
    server.server_close()
    thread.join(LIMIT_S)


def test_a_certificate_that_is_not_trusted_needs_its_ca(
    connect: Connect, tls_endpoint: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, certificate = tls_endpoint
    with pytest.raises(ConfigError) as error:
        connect(endpoint=endpoint)
    assert (error.value.code, error.value.field) == ("StorageTls", "storage.s3.endpoint")
    assert error.value.hint is not None
    assert "AWS_CA_BUNDLE" in error.value.hint
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    connect(endpoint=endpoint)


def test_a_server_killed_while_a_stage_writes_is_waited_for(connect: Connect, tmp_path: Path) -> None:
    server = S3Server(tmp_path / "mortal").start()
    name = server.make_bucket("mortal")
    try:
        store = connect(endpoint=server.endpoint, uri=f"s3://{name}/x", WRPO_STORAGE_PATIENCE_SECONDS="300")
        own = writer(store)
        own.publish("parts/1", fill(b"one"))
        server.kill()
        waits: list[float] = []

        def restart_instead(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 1:
                server.start()

        store.copies.bucket.sleep = restart_instead
        own.publish("parts/2", fill(b"two"))
        assert waits
        assert own.published() == ["parts/1", "parts/2"]
        own.commit(files=["parts/1", "parts/2"])
        read = connect("b", endpoint=server.endpoint, uri=f"s3://{name}/x").open(REF)
        assert read is not None
        assert [read.file(part).read_bytes() for part in read.files()] == [b"one", b"two"]
    finally:
        server.kill()


def bucket_with_a_clock(connect: Connect, patience: Patience) -> tuple[S3Bucket, list[float]]:
    """A bucket whose sleeping only moves its clock."""
    bucket, now = connect().copies.bucket, [0.0]
    bucket.patience = patience
    bucket.sleep = lambda seconds: now.__setitem__(0, now[0] + seconds)
    bucket.monotonic = lambda: now[0]
    return bucket, now


def fail() -> None:
    raise ConnectionResetError("reset by peer")


def test_patience_ends_and_waits_grow(connect: Connect) -> None:
    bucket, now = bucket_with_a_clock(connect, Patience(seconds=100))
    tries: list[float] = []
    with pytest.raises(TemporaryError):
        bucket.call("write x", lambda: (tries.append(now[0]), fail()))
    assert 60 < now[0] <= 100
    pauses = [after - before for before, after in itertools.pairwise(tries)]
    assert pauses[0] <= 0.5
    assert max(pauses) <= 20
    assert 6 < len(tries) < 20


def test_progress_begins_patience_anew(connect: Connect) -> None:
    bucket, now = bucket_with_a_clock(connect, Patience(seconds=10))
    position = [0]

    def request() -> str:
        position[0] += 1
        if position[0] < 40:
            fail()
        return "done"

    assert bucket.call("read x", request, progress=lambda: position[0]) == "done"
    assert now[0] > 10


def test_a_stage_that_was_asked_to_stop_waits_less(connect: Connect) -> None:
    bucket, now = bucket_with_a_clock(connect, Patience(seconds=1000))
    bucket.is_stopping = lambda: True
    with pytest.raises(TemporaryError):
        bucket.call("write x", fail)
    assert now[0] <= 20


def test_a_server_without_conditional_writes_is_served_too(connect: Connect, proxy: FaultProxy) -> None:
    store = connect(endpoint=proxy.endpoint)
    unknown = s3_error(501, "NotImplemented", "A header you provided implies functionality that is not implemented")
    proxy.faults = [lambda request: unknown if "if-none-match" in request.headers else None]
    first, second = writer(store), writer(connect("b", endpoint=proxy.endpoint))
    first.publish("rows", fill(b"hello"))
    made = first.commit(files=["rows"])
    second._put_manifest(b"late")
    assert second.committed().digest == made.digest


def test_a_full_local_disk_is_told_from_full_storage(connect: Connect) -> None:
    import errno

    def no_space(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with pytest.raises(StorageError) as error:
        writer(connect()).publish("rows", no_space)
    assert error.value.code == "ScratchFull"
    assert error.value.hint is not None
    assert "WRPO_SCRATCH" in error.value.hint


def test_rights_to_delete_are_asked_for_by_name(connect: Connect, proxy: FaultProxy) -> None:
    own = writer(connect(endpoint=proxy.endpoint))
    own.publish("work/1", fill(b"x"))
    body = b"<DeleteResult><Error><Key>x</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>"
    proxy.faults = [lambda r: Answer(200, body) if r.method == "POST" and "delete" in r.path else None]
    with pytest.raises(ConfigError, match="access is denied") as error:
        own.discard("work/")
    assert error.value.hint is not None
    assert "s3:DeleteObject" in error.value.hint


@pytest.mark.parametrize("text", ["soon", "-1"])
def test_a_patience_that_is_no_number_is_refused(connect: Connect, text: str) -> None:
    with pytest.raises(ConfigError, match="WRPO_STORAGE_PATIENCE_SECONDS is"):
        connect(WRPO_STORAGE_PATIENCE_SECONDS=text)
