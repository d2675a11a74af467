"""Artifacts in a real bucket: there wholly or not at all, and readers notice every change."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_support import NOON
from support.fault_proxy import Answer, FaultProxy, times
from support.patience import LIMIT_S
from support.s3_server import S3Server

from wrpo_engine.artifacts import transfer
from wrpo_engine.artifacts.s3 import S3Store
from wrpo_engine.artifacts.store import Artifact
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import ConfigError, DataError, MissingInputError, TemporaryError
from wrpo_engine.loading.files import is_model_file

REF = ArtifactRef(stage="sample/qwen", hash="00000000000000aa")
BASE = "sample/qwen/00000000000000aa"

Connect = Callable[..., S3Store]


def write(content: str | bytes) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content

    def fill(path: Path) -> None:
        path.write_bytes(data)

    return fill


def writer(store: S3Store, ref: ArtifactRef = REF) -> Any:
    return store.writer(ref, config={"params": {"seed": 1}}, inputs={})


def test_an_artifact_is_there_only_after_its_manifest_and_for_every_pod(connect: Connect) -> None:
    first = writer(connect("a"))
    first.begin()
    first.publish("a/rows.txt", write("one\n"))
    assert connect("b").open(REF) is None
    made = first.commit(files=["a/rows.txt"], rows={"a/rows.txt": 1}, metrics={"m": 2.0}, details={"why": "test"})
    read = connect("b").open(REF)
    assert read is not None
    assert read.digest == made.digest
    assert read.file("a/rows.txt").read_text() == "one\n"
    assert read.manifest.rows == 1
    assert read.manifest.created_at == NOON
    assert read.manifest.files[0].sha256 == hashlib.sha256(b"one\n").hexdigest()


def test_what_was_published_is_seen_and_fetched_by_another_pod(connect: Connect) -> None:
    first, second = writer(connect("a")), writer(connect("b"))
    first.begin()
    first.publish("parts/1", write("one"))
    first.publish("parts/2", write("two"))
    first.publish("other", write("three"))
    assert second.published("parts/") == ["parts/1", "parts/2"]
    assert second.published() == ["other", "parts/1", "parts/2"]
    assert second.fetch("parts/2").read_text() == "two"
    first.publish("parts/2", write("two, again"), replace=True)
    assert second.fetch("parts/2").read_text() == "two, again"
    with pytest.raises(MissingInputError, match=r"s3://.*/parts/3 of the unfinished artifact"):
        second.fetch("parts/3")
    second.discard("parts/")
    assert first.published() == ["other"]
    assert not (second.directory / "parts/2").exists()


def test_a_commit_uploads_what_the_stage_wrote_itself(connect: Connect, s3: S3Server, bucket: str, root: str) -> None:
    own = writer(connect("a"))
    own.begin()
    (own.directory / "model").mkdir(parents=True)
    (own.directory / "model" / "config.json").write_text("{}")
    own.publish("log", write("x"))
    (own.directory / "log").write_text("x, and more that was appended here")
    own.commit(files=["model/config.json", "log"])
    read = connect("b").open(REF)
    assert read is not None
    assert read.file("model/config.json").read_text() == "{}"
    assert read.file("log").read_text() == "x, and more that was appended here"
    names = ("log", "manifest.json", "model/config.json")
    assert s3.keys(bucket, f"{root}/{BASE}") == [f"{root}/{BASE}/{name}" for name in names]


def test_a_commit_over_parts_of_other_pods_reads_none_of_them(connect: Connect, proxy: FaultProxy) -> None:
    writer(connect("a")).publish("parts/1", write("one"))
    last = writer(connect("b", endpoint=proxy.endpoint))
    last.publish("parts/2", write("two"))
    artifact = last.commit(files=["parts/1", "parts/2"])
    assert [entry.sha256 for entry in artifact.manifest.files] == [
        hashlib.sha256(content).hexdigest() for content in (b"one", b"two")
    ]
    assert proxy.ranges_asked("parts/") == []


def test_a_file_without_a_recorded_checksum_is_hashed(connect: Connect, s3: S3Server, bucket: str, root: str) -> None:
    s3.client().put_object(Bucket=bucket, Key=f"{root}/{BASE}/foreign", Body=b"by hand")
    artifact = writer(connect("a")).commit(files=["foreign"])
    assert artifact.manifest.files[0].sha256 == hashlib.sha256(b"by hand").hexdigest()


def test_a_file_that_is_nowhere_cannot_be_committed(connect: Connect) -> None:
    with pytest.raises(MissingInputError, match="rows does not exist, so the artifact cannot be committed"):
        writer(connect("a")).commit(files=["rows"])


def test_of_many_racing_writers_one_wins_and_all_return_its_artifact(connect: Connect) -> None:
    writers = [writer(connect(f"pod{index}")) for index in range(6)]
    for index, each in enumerate(writers):
        each.publish(f"own-{index}", write(str(index)))
    gate = threading.Barrier(len(writers))
    digests: list[str] = []

    def race(index: int) -> None:
        gate.wait()
        digests.append(writers[index].commit(files=[f"own-{index}"]).digest)

    threads = [threading.Thread(target=race, args=(index,)) for index in range(len(writers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == len(writers)
    assert len(set(digests)) == 1


def test_a_writer_that_saw_no_manifest_does_not_replace_one(connect: Connect) -> None:
    late, early = writer(connect("a")), writer(connect("b"))
    winner = early.commit(files=[])
    late._put_manifest(b"late")
    assert late.committed().digest == winner.digest


DAMAGES: dict[str, tuple[bytes | None, str]] = {
    "truncated": (b"he", "has 2 bytes where the manifest says 5"),
    "altered": (b"hullo", "was altered: its sha256 is not the manifest's"),
    "missing": (None, "is missing"),
}


@pytest.mark.parametrize(("content", "expected"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_reader_names_the_damaged_object(
    connect: Connect, s3: S3Server, bucket: str, root: str, content: bytes | None, expected: str
) -> None:
    own = writer(connect("a"))
    own.publish("rows.txt", write("hello"))
    own.commit(files=["rows.txt"])
    if content is None:
        s3.client().delete_object(Bucket=bucket, Key=f"{root}/{BASE}/rows.txt")
    else:
        s3.client().put_object(Bucket=bucket, Key=f"{root}/{BASE}/rows.txt", Body=content)
    read = connect("b").open(REF)
    assert read is not None
    with pytest.raises(DataError) as error:
        read.file("rows.txt")
    assert error.value.message == f"file s3://{bucket}/{root}/{BASE}/rows.txt of artifact {BASE} {expected}"
    if content != b"hullo":
        with pytest.raises(DataError, match=expected):
            own.committed()


def artifact_of(store: S3Store) -> Artifact:
    found = store.open(REF)
    assert found is not None
    return found


def test_a_copy_that_was_altered_in_the_cache_is_fetched_again(connect: Connect) -> None:
    own = writer(connect("a"))
    own.publish("rows.txt", write("hello"))
    own.commit(files=["rows.txt"])
    copy = artifact_of(connect("b")).file("rows.txt")
    copy.write_text("hullo")
    assert artifact_of(connect("b")).file("rows.txt").read_text() == "hello"


MANIFESTS = {
    "truncated": (b'{"stage": "sample/qwen"', r"manifest\.json of artifact sample/qwen/0+aa is not a valid manifest"),
    "of another version": (
        b'{"schema_version": 2, "parts": []}',
        r"schema version 2; this engine .* reads version 1",
    ),
    "without files": (
        b'{"stage": "sample/qwen", "hash": "00000000000000aa"}',
        r"is not a valid manifest: \w+: Field required",
    ),
}


@pytest.mark.parametrize(("content", "expected"), MANIFESTS.values(), ids=MANIFESTS.keys())
def test_a_broken_manifest_is_named(
    connect: Connect, s3: S3Server, bucket: str, root: str, content: bytes, expected: str
) -> None:
    s3.client().put_object(Bucket=bucket, Key=f"{root}/{BASE}/manifest.json", Body=content)
    with pytest.raises(DataError, match=expected):
        connect("a").open(REF)


def test_large_files_go_and_come_in_parts(connect: Connect, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    # S3's smallest part.
    monkeypatch.setattr(transfer, "PART_BYTES", 5 << 20)
    content = os.urandom(12 << 20)
    own = writer(connect("a", endpoint=proxy.endpoint))
    own.publish("big", write(content))
    own.commit(files=["big"])
    uploaded = [request for request in proxy.requests if "partNumber" in request.path]
    assert len(uploaded) == 3
    # The server compares them.
    assert all("sha256" in " ".join([*each.headers, *each.headers.values()]) for each in uploaded)
    read = connect("b", endpoint=proxy.endpoint).open(REF)
    assert read is not None
    assert read.file("big").read_bytes() == content


def test_a_download_goes_on_at_the_byte_where_it_broke(connect: Connect, proxy: FaultProxy) -> None:
    content = os.urandom(3 << 20)
    writer(connect("a")).publish("rows", write(content))
    cut = (1 << 20) + 100
    proxy.faults = [times(1, Answer(cut_body_to=cut), when=lambda r: r.method == "GET" and r.path.endswith("/rows"))]
    assert writer(connect("b", endpoint=proxy.endpoint)).fetch("rows").read_bytes() == content
    first, second = proxy.ranges_asked("/rows")
    assert first == f"bytes=0-{len(content) - 1}"
    begun = int(second.removeprefix("bytes=").split("-")[0])
    assert 0 < begun <= cut


def test_a_killed_download_goes_on_with_the_parts_that_are_missing(connect: Connect, proxy: FaultProxy) -> None:
    content = os.urandom(4 << 20)
    writer(connect("a")).publish("rows", write(content))
    store = connect("b", endpoint=proxy.endpoint)
    name = f"{REF.stage}/{REF.hash}/rows"
    stat = store.copies.bucket.stat(name)
    assert stat is not None
    version = transfer.Version(stat.size, stat.etag)
    partial = store.copies.cache.partial(name)
    proxy.faults = [lambda r: Answer(403, b"") if r.headers.get("range", "").startswith(f"bytes={3 << 20}-") else None]
    with pytest.raises(ConfigError, match="access is denied"):
        transfer.download(store.copies.bucket, name, partial, version, part_bytes=1 << 20)
    proxy.faults, proxy.requests[:] = [], []
    transfer.download(store.copies.bucket, name, partial, version, part_bytes=1 << 20)
    assert partial.read_bytes() == content
    assert f"bytes={3 << 20}-{(4 << 20) - 1}" in proxy.ranges_asked("/rows")
    assert len(proxy.ranges_asked("/rows")) < 4


def test_an_object_replaced_between_two_parts_is_read_anew_by_the_next_attempt(connect: Connect) -> None:
    store = connect("a")
    writer(store).publish("rows", write("hello"))
    name = f"{REF.stage}/{REF.hash}/rows"
    with pytest.raises(TemporaryError, match=r"rows was replaced while it was read"):
        transfer.download(store.copies.bucket, name, store.copies.cache.partial(name), transfer.Version(5, '"other"'))


def test_storage_paths_are_brought_here_once_and_follow_the_bucket(
    connect: Connect, s3: S3Server, bucket: str, root: str, proxy: FaultProxy
) -> None:
    client = s3.client()
    objects = {
        "m/config.json": b"{}",
        "m/a.safetensors": b"w",
        "m/a.bin": b"p",
        "m/original/params.json": b"{}",
        "m2/x.json": b"no",
    }
    for name, body in objects.items():
        client.put_object(Bucket=bucket, Key=f"{root}/models/{name}", Body=body)
    store = connect("a", endpoint=proxy.endpoint)
    path = store.local_copy("models/m", is_model_file)
    assert sorted(p.name for p in path.iterdir()) == ["a.safetensors", "config.json"]
    asked = len(proxy.ranges_asked("models/"))
    assert store.local_copy("models/m", is_model_file) == path
    assert len(proxy.ranges_asked("models/")) == asked == 2
    client.put_object(Bucket=bucket, Key=f"{root}/models/m/config.json", Body=b'{"new": 1}')
    client.delete_object(Bucket=bucket, Key=f"{root}/models/m/a.safetensors")
    store.local_copy("models/m", is_model_file)
    assert {p.name: p.read_bytes() for p in path.iterdir()} == {"config.json": b'{"new": 1}'}
    assert store.local_copy("models/m2/x.json").read_bytes() == b"no"
    assert not store.local_copy("models/nobody").exists()
    with pytest.raises(ConfigError, match="the whole storage is not read"):
        store.local_copy("")


_PROCESS = """
import sys
from datetime import UTC, datetime
from wrpo_engine.artifacts.s3 import S3Store
from wrpo_engine.config import S3Storage
import os
store = S3Store.connect(S3Storage(uri=sys.argv[1], endpoint=sys.argv[2]), os.environ, lambda: datetime.now(UTC))
print(store.local_copy("models/m"))
"""


def test_processes_of_one_pod_download_once(
    connect: Connect, s3: S3Server, bucket: str, root: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    s3.client().put_object(Bucket=bucket, Key=f"{root}/models/m/w.safetensors", Body=os.urandom(2 << 20))
    command = [sys.executable, "-c", _PROCESS, f"s3://{bucket}/{root}", proxy.endpoint]
    environ = {**os.environ, "WRPO_SCRATCH": str(tmp_path / "one-pod")}
    running = [subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    places = {process.communicate(timeout=LIMIT_S)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert len(places) == 1
    assert len(proxy.ranges_asked("w.safetensors")) == 1


def test_an_upload_that_is_killed_leaves_nothing_to_see(
    connect: Connect, s3: S3Server, bucket: str, root: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    script = tmp_path / "killed.py"
    script.write_text(
        _PROCESS.replace('print(store.local_copy("models/m"))', "") + "from wrpo_engine.config import ArtifactRef\n"
        f"w = store.writer(ArtifactRef(stage={REF.stage!r}, hash={REF.hash!r}), config={{}}, inputs={{}})\n"
        "w.publish('big', lambda path: path.write_bytes(os.urandom(48 << 20)))\n"
    )
    # The third part never gets an answer, so that the upload is under way when the process is killed.
    reached = threading.Event()

    def hold(request: Any) -> Answer | None:
        if "partNumber=3" in request.path:
            reached.set()
            proxy.closing.wait(LIMIT_S)
        return None

    proxy.faults = [hold]
    command = [sys.executable, str(script), f"s3://{bucket}/{root}", proxy.endpoint]
    process = subprocess.Popen(command, env={**os.environ, "WRPO_SCRATCH": str(tmp_path / "killed")}, cwd=Path.cwd())
    assert reached.wait(LIMIT_S)
    process.send_signal(signal.SIGKILL)
    process.wait(LIMIT_S)
    assert writer(connect("b")).published() == []
    writer(connect("b")).publish("big", write(b"the next attempt"))
    assert writer(connect("c")).fetch("big").read_bytes() == b"the next attempt"
