"""Many small files of a bucket: one request each, at the same time, verified, and continued where an answer broke."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fault_proxy import Answer, FaultProxy, Request, s3_error, times
from support.patience import LIMIT_S
from support.s3_server import S3Server

from wrpo_engine.artifacts import base
from wrpo_engine.artifacts.s3 import S3Store
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import ConfigError, DataError, MissingInputError, TemporaryError

REF = ArtifactRef(stage="sample/qwen", hash="00000000000000aa")
BASE = "sample/qwen/00000000000000aa"
NAMES = [f"parts/part-{index:05d}" for index in range(24)]

Connect = Callable[..., S3Store]


def write(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def writer(store: S3Store) -> Any:
    return store.writer(REF, config={}, inputs={})


@pytest.fixture
def made(connect: Connect) -> Any:
    own = writer(connect("maker"))
    for name in NAMES:
        own.publish(name, write(name.encode()))
    return own


def asked(proxy: FaultProxy, word: str = "/parts/") -> list[str]:
    return [request.method for request in proxy.requests if word in request.path and "list-type" not in request.path]


def test_a_part_of_an_artifact_costs_one_request(connect: Connect, made: Any, proxy: FaultProxy) -> None:
    made.commit(files=NAMES)
    artifact = connect("reader", endpoint=proxy.endpoint).open(REF)
    assert artifact is not None
    backwards = NAMES[::-1]
    assert [path.read_text() for path in artifact.fetch_all(backwards)] == backwards
    assert asked(proxy) == ["GET"] * len(NAMES)
    assert [path.read_text() for path in artifact.fetch_all(NAMES)] == NAMES
    assert len(asked(proxy)) == len(NAMES)


def test_many_are_asked_for_at_once(connect: Connect, made: Any, proxy: FaultProxy) -> None:
    made.commit(files=NAMES)
    together = threading.Barrier(base.AT_ONCE, timeout=LIMIT_S)

    def hold(request: Request) -> Answer | None:
        if "/parts/" in request.path and int(request.path[-5:]) < base.AT_ONCE:
            together.wait()
        return None

    artifact = connect("reader", endpoint=proxy.endpoint).open(REF)
    assert artifact is not None
    proxy.faults = [hold]
    artifact.fetch_all(NAMES)
    assert not together.broken


def test_a_commit_over_fetched_parts_asks_for_none_again(connect: Connect, made: Any, proxy: FaultProxy) -> None:
    last = writer(connect("last", endpoint=proxy.endpoint))
    assert [path.read_text() for path in last.fetch_all(NAMES)] == NAMES
    last.commit(files=NAMES)
    assert asked(proxy) == ["GET"] * len(NAMES)
    artifact = connect("reader").open(REF)
    assert artifact is not None
    assert [artifact.file(name).read_text() for name in NAMES] == NAMES


def test_a_part_that_is_not_there_is_named(connect: Connect, made: Any) -> None:
    with pytest.raises(MissingInputError, match=r"parts/nobody of the unfinished artifact"):
        writer(connect("last")).fetch_all([*NAMES, "parts/nobody"])


def test_a_part_that_is_removed_between_listing_and_reading_is_named(
    connect: Connect, made: Any, proxy: FaultProxy
) -> None:
    gone = s3_error(404, "NoSuchKey")
    proxy.faults = [lambda request: gone if request.path.endswith(NAMES[3]) else None]
    with pytest.raises(MissingInputError, match=rf"{NAMES[3]} of the unfinished artifact"):
        writer(connect("last", endpoint=proxy.endpoint)).fetch_all(NAMES)


def test_a_part_that_is_replaced_between_listing_and_reading_is_left_to_the_next_attempt(
    connect: Connect, made: Any, proxy: FaultProxy
) -> None:
    replaced = s3_error(412, "PreconditionFailed")
    proxy.faults = [lambda request: replaced if request.path.endswith(NAMES[3]) else None]
    with pytest.raises(TemporaryError, match="was replaced while it was read") as error:
        writer(connect("last", endpoint=proxy.endpoint)).fetch_all(NAMES)
    assert error.value.exit_code == 75


DAMAGES: dict[str, tuple[bytes | None, str]] = {
    "truncated": (b"part", "has 4 bytes where the manifest says 16"),
    "altered": (b"parts/part-xxxxx", "was altered: its sha256 is not the manifest's"),
    "missing": (None, "is missing"),
}


@pytest.mark.parametrize(("content", "expected"), DAMAGES.values(), ids=DAMAGES.keys())
def test_one_damaged_part_of_many_is_named(
    connect: Connect, made: Any, s3: S3Server, bucket: str, root: str, content: bytes | None, expected: str
) -> None:
    made.commit(files=NAMES)
    key = f"{root}/{BASE}/{NAMES[5]}"
    s3.client().delete_object(Bucket=bucket, Key=key)
    if content is not None:
        s3.client().put_object(Bucket=bucket, Key=key, Body=content)
    artifact = connect("reader").open(REF)
    assert artifact is not None
    with pytest.raises(DataError) as error:
        artifact.fetch_all(NAMES)
    assert error.value.message == f"file s3://{bucket}/{key} of artifact {BASE} {expected}"


def test_an_answer_that_breaks_goes_on_at_that_byte(connect: Connect, proxy: FaultProxy) -> None:
    content = os.urandom(3 << 20)
    own = writer(connect("maker"))
    own.publish("rows", write(content))
    own.commit(files=["rows"])
    proxy.faults = [times(1, Answer(cut_body_to=(2 << 20) + 5), when=lambda r: r.path.endswith("/rows"))]
    artifact = connect("reader", endpoint=proxy.endpoint).open(REF)
    assert artifact is not None
    assert artifact.fetch_all(["rows"])[0].read_bytes() == content
    (rest,) = proxy.ranges_asked("/rows")
    assert int(rest.removeprefix("bytes=").split("-")[0]) > 1 << 20


def test_large_files_come_in_parts_and_one_after_another(
    connect: Connect, made: Any, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.commit(files=NAMES)
    monkeypatch.setattr("wrpo_engine.artifacts.s3.SMALL_BYTES", 3)
    monkeypatch.setattr(base, "SMALL_BYTES", 3)
    artifact = connect("reader", endpoint=proxy.endpoint).open(REF)
    assert artifact is not None
    assert [path.read_text() for path in artifact.fetch_all(NAMES)] == NAMES
    assert asked(proxy) == ["HEAD", "GET"] * len(NAMES)


def test_a_right_that_is_missing_for_one_of_many_is_named(connect: Connect, made: Any, proxy: FaultProxy) -> None:
    made.commit(files=NAMES)
    proxy.faults = [lambda request: s3_error(403, "AccessDenied") if request.path.endswith(NAMES[7]) else None]
    artifact = connect("reader", endpoint=proxy.endpoint).open(REF)
    assert artifact is not None
    with pytest.raises(ConfigError, match=rf"access is denied: cannot read s3://.*/{NAMES[7]}"):
        artifact.fetch_all(NAMES)
