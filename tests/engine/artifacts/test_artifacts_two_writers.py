"""Two writers of one artifact whose bytes differ: whoever is first stands, and no reader ever finds it altered."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_support import NOON, stage_config
from support.fault_proxy import Answer, FaultProxy, s3_error

from wrpo_engine.artifacts import VolumeStore, transfer
from wrpo_engine.artifacts.s3 import S3Store
from wrpo_engine.config import ArtifactRef, TerminationMessage
from wrpo_engine.errors import AlreadyCommitted, DataError
from wrpo_engine.running import run
from wrpo_engine.stage import StageContext, StageResult, StopRequest

REF = ArtifactRef(stage="sample/qwen", hash="00000000000000aa")
NAMES = ["parts/1", "parts/2"]

Connect = Callable[..., S3Store]
Open = Callable[[str], Any]


def write(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


@pytest.fixture(params=["volume", "s3"])
def store_of(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """`store_of("a")`: the store as pod a opens it."""
    if request.param == "volume":
        return lambda _pod: VolumeStore(tmp_path, lambda: NOON)
    connect: Open = request.getfixturevalue("connect")
    return connect


def writer(store: Any) -> Any:
    return store.writer(REF, config={}, inputs={})


def contents(store: Any) -> dict[str, str]:
    """What a reader finds, verified."""
    artifact = store.open(REF)
    assert artifact is not None
    return {name: artifact.file(name).read_text() for name in artifact.files()}


STEPS = ["parts/1", "parts/2", "commit"]
ORDERS = sorted(set(itertools.permutations("aaabbb")))


@pytest.mark.parametrize("order", ORDERS, ids="".join)
def test_in_every_order_of_their_steps_readers_trust_what_was_first(store_of: Open, order: tuple[str, ...]) -> None:
    writers = {pod: writer(store_of(pod)) for pod in "ab"}
    left = {pod: iter(STEPS) for pod in "ab"}
    first: dict[str, str] = {}
    refused: set[str] = set()
    for pod in order:
        step = next(left[pod])
        if step == "commit":
            writers[pod].commit(files=NAMES)
            continue
        is_there = writers[pod].committed() is not None
        try:
            path = writers[pod].publish(step, write(f"{step} of {pod}"))
        except AlreadyCommitted:
            refused.add(pod)
            assert is_there
        else:
            assert not is_there
            assert path.read_text() == first.setdefault(step, f"{step} of {pod}")
    assert contents(store_of("reader")) == first
    assert (refused == {"b"}) == (order[:3] == tuple("aaa") or order[:4].count("a") == 3)


def test_threads_that_race_for_a_name_all_return_the_winner(store_of: Open) -> None:
    gate = threading.Barrier(4)
    found: list[str] = []

    def race(pod: str) -> None:
        own = writer(store_of(pod))
        gate.wait()
        found.append(own.publish("rows", write(f"of {pod}")).read_text())

    threads = [threading.Thread(target=race, args=(pod,)) for pod in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    last = writer(store_of("a"))
    last.commit(files=["rows"])
    assert contents(store_of("reader")) == {"rows": found[0]}


def test_who_publishes_while_another_one_commits_does_not_change_what_it_commits(
    store_of: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = writer(store_of("a")), writer(store_of("b"))
    first.publish("rows", write("of a"))
    put = first._put_manifest

    def late(content: bytes) -> None:
        assert second.publish("rows", write("of b, and longer")).read_text() == "of a"
        put(content)

    monkeypatch.setattr(first, "_put_manifest", late)
    first.commit(files=["rows"])
    assert contents(store_of("reader")) == {"rows": "of a"}


def test_the_manifest_says_what_stands_not_what_the_committer_wrote(store_of: Open) -> None:
    first, second = writer(store_of("a")), writer(store_of("b"))
    second.publish("rows", write("longer than the other"))
    first.publish("rows", write("short"))
    first.commit(files=["rows"], rows={"rows": 1})
    assert contents(store_of("reader")) == {"rows": "longer than the other"}


def test_files_that_are_written_again_on_purpose_are(store_of: Open) -> None:
    first, second = writer(store_of("a")), writer(store_of("b"))
    first.publish("checkpoints/best.json", write("1"))
    second.publish("checkpoints/best.json", write("2"), replace=True)
    assert first.fetch("checkpoints/best.json").read_text() == "2"
    first.commit(files=[])
    with pytest.raises(AlreadyCommitted):
        second.publish("checkpoints/best.json", write("3"), replace=True)
    assert writer(store_of("c")).fetch("checkpoints/best.json").read_text() == "2"


def test_what_a_file_has_to_be_is_not_what_it_was_changed_to(store_of: Open) -> None:
    own = writer(store_of("a"))
    own.publish("rows", write("altered"))
    with pytest.raises(DataError, match=r"was altered|is not what was to be written"):
        own.commit(files=["rows"], sha256={"rows": "0" * 64}).file("rows")


def test_a_name_that_was_given_up_is_free_again(store_of: Open) -> None:
    own = writer(store_of("a"))
    own.publish("rows", write("one"))
    own.discard("rows")
    assert own.publish("rows", write("two")).read_text() == "two"
    own.commit(files=["rows"])
    assert contents(store_of("reader")) == {"rows": "two"}


def test_without_hard_links_what_stands_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    store = VolumeStore(tmp_path, lambda: NOON)
    writer(store).publish("rows", write("one"))
    assert writer(store).publish("rows", write("two")).read_text() == "one"


def test_large_files_of_a_second_writer_are_given_up(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    # S3's smallest part.
    monkeypatch.setattr(transfer, "PART_BYTES", 5 << 20)
    first, second = writer(connect("a")), writer(connect("b"))
    first.publish("big", lambda path: path.write_bytes(b"a" * (11 << 20)))
    assert second.publish("big", lambda path: path.write_bytes(b"b" * (12 << 20))).read_bytes() == b"a" * (11 << 20)
    assert second.copies.bucket.unfinished_uploads() == []
    second.commit(files=["big"])
    artifact = connect("reader").open(REF)
    assert artifact is not None
    assert artifact.file("big").stat().st_size == 11 << 20


LOST = {"PUT": "/rows", "POST": "uploadId="}


@pytest.mark.parametrize("method", LOST)
def test_an_upload_whose_answer_was_lost_finds_its_own_bytes(
    connect: Connect, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(transfer, "PART_BYTES", 5 << 20)
    content = b"a" * (6 << 20) if method == "POST" else b"a"
    lost = [Answer(is_lost=True)]

    def lose(request: Any) -> Answer | None:
        if request.method == method and LOST[method] in request.path and lost:
            return lost.pop()
        return None

    store = connect("a", endpoint=proxy.endpoint)
    store.copies.bucket.sleep = lambda _seconds: None
    own = writer(store)
    proxy.faults = [lose]
    assert own.publish("rows", lambda path: path.write_bytes(content)).read_bytes() == content
    assert not lost
    own.commit(files=["rows"])
    artifact = connect("reader").open(REF)
    assert artifact is not None
    assert artifact.file("rows").read_bytes() == content


def test_a_server_without_conditional_writes_keeps_what_stands(connect: Connect, proxy: FaultProxy) -> None:
    unknown = s3_error(501, "NotImplemented")
    proxy.faults = [lambda request: unknown if "if-none-match" in request.headers else None]
    first, second = (writer(connect(pod, endpoint=proxy.endpoint)) for pod in "ab")
    first.publish("rows", write("one"))
    assert second.publish("rows", write("two")).read_text() == "one"


def test_a_stage_whose_artifact_another_one_committed_meanwhile_ends_as_cached(tmp_path: Path) -> None:
    config = stage_config({"stage": "report", "title": "x"}, stage="report", hash_=REF.hash)
    (tmp_path / "stage.json").write_text(config.model_dump_json())
    ref = ArtifactRef(stage="report", hash=REF.hash)

    def slow(ctx: StageContext) -> StageResult:
        VolumeStore(tmp_path, lambda: NOON).writer(ref, config={}, inputs={}).commit(files=[], metrics={"first": 1.0})
        ctx.output.publish("rows", lambda path: path.write_text("late"))
        return StageResult(rows=0)

    environ = {"WRPO_VOLUME_ROOT": str(tmp_path), "WRPO_TERMINATION_MESSAGE_PATH": str(tmp_path / "outcome")}
    assert run("report", tmp_path / "stage.json", environ, stop=StopRequest(), load=lambda _kind: slow) == 0
    message = TerminationMessage.model_validate_json((tmp_path / "outcome").read_bytes())
    assert (message.cached, message.metrics) == (True, {"first": 1.0})
