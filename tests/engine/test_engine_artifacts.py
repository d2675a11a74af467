"""Artifacts exist wholly or not at all, and readers notice every change."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from engine_support import NOON

from wrpo_engine.artifacts import ArtifactWriter, VolumeStore
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import DataError
from wrpo_engine.process.storage_errors import storage_error

REF = ArtifactRef(stage="sample/qwen", hash="00000000000000aa")


def write(content: str) -> Callable[[Path], None]:
    return lambda path: _write(path, content)


def _write(path: Path, content: str) -> None:
    path.write_text(content)


@pytest.fixture
def store(tmp_path: Path) -> VolumeStore:
    return VolumeStore(tmp_path, lambda: NOON)


@pytest.fixture
def writer(store: VolumeStore) -> ArtifactWriter:
    return store.writer(REF, config={"params": {"seed": 1}}, inputs={})


def test_an_artifact_is_there_only_after_its_manifest(store: VolumeStore, writer: ArtifactWriter) -> None:
    writer.publish("rows.txt", write("one\n"))
    assert store.open(REF) is None
    writer.commit(files=["rows.txt"], rows={"rows.txt": 1}, metrics={"m": 2.0}, details={"why": "test"})
    artifact = store.open(REF)
    assert artifact is not None
    assert artifact.file("rows.txt").read_text() == "one\n"
    assert artifact.manifest.rows == 1
    assert artifact.manifest.metrics == {"m": 2.0}
    assert artifact.digest == hashlib.sha256((writer.directory / "manifest.json").read_bytes()).hexdigest()


def test_the_manifest_says_size_and_sha256_of_every_file(writer: ArtifactWriter) -> None:
    writer.publish("a/b.txt", write("hello"))
    writer.commit(files=["a/b.txt"])
    document = json.loads((writer.directory / "manifest.json").read_text())
    assert document["files"] == [
        {"name": "a/b.txt", "size": 5, "sha256": hashlib.sha256(b"hello").hexdigest(), "rows": None}
    ]
    assert document["created_at"] == "2026-01-01T12:00:00Z"


def test_a_write_that_fails_leaves_nothing_behind(writer: ArtifactWriter) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with pytest.raises(OSError, match="No space left"):
        writer.publish("rows.txt", fail)
    assert list(writer.directory.iterdir()) == []


def test_of_two_writers_the_first_manifest_stays(tmp_path: Path, writer: ArtifactWriter) -> None:
    writer.publish("rows.txt", write("same"))
    later = VolumeStore(tmp_path, lambda: NOON + timedelta(hours=1)).writer(REF, config={}, inputs={})
    first = writer.commit(files=["rows.txt"])
    second = later.commit(files=["rows.txt"])
    assert second.digest == first.digest


def test_a_racing_writer_that_saw_no_manifest_does_not_replace_it(writer: ArtifactWriter) -> None:
    writer.publish("rows.txt", write("same"))
    first = writer.commit(files=["rows.txt"])
    writer._put_manifest(b"late")  # type: ignore[attr-defined]
    assert writer.committed() is not None
    assert writer.commit(files=["rows.txt"]).digest == first.digest
    assert sorted(path.name for path in writer.directory.iterdir()) == ["manifest.json", "rows.txt"]


def test_a_commit_removes_what_killed_attempts_left(writer: ArtifactWriter) -> None:
    import os

    old, young = writer.publish("parts/.tmp-old", write("x")), writer.publish("parts/.tmp-young", write("x"))
    for path, age_s in ((old, 7200), (young, 60)):
        stamp = NOON.timestamp() - age_s
        os.utime(path, (stamp, stamp))
    writer.commit(files=[])
    assert [path.name for path in (writer.directory / "parts").iterdir()] == [".tmp-young"]


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a truncated file": (lambda path: path.write_text("he"), "has 2 bytes where the manifest says 5"),
    "an altered file": (lambda path: path.write_text("hullo"), "was altered: its sha256 is not the manifest's"),
    "a missing file": (lambda path: path.unlink(), "is missing"),
}


@pytest.mark.parametrize(("damage", "expected"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_reader_names_the_damaged_file(
    store: VolumeStore, writer: ArtifactWriter, damage: Callable[[Path], object], expected: str
) -> None:
    path = writer.publish("rows.txt", write("hello"))
    writer.commit(files=["rows.txt"])
    damage(path)
    artifact = store.open(REF)
    assert artifact is not None
    with pytest.raises(DataError) as error:
        artifact.file("rows.txt")
    assert error.value.message == f"file {path} of artifact sample/qwen/00000000000000aa {expected}"
    assert error.value.hint == (
        "Remove the directory sample/qwen/00000000000000aa below the storage root; the stage that made it runs again."
    )


def test_a_broken_manifest_is_named(store: VolumeStore, writer: ArtifactWriter) -> None:
    writer.publish("manifest.json", write('{"stage": "sample/qwen"'))
    with pytest.raises(DataError, match=r"manifest\.json of artifact sample/qwen/0+aa is not a valid manifest"):
        store.open(REF)


def test_a_manifest_of_another_artifact_is_refused(tmp_path: Path, store: VolumeStore, writer: ArtifactWriter) -> None:
    other = store.writer(ArtifactRef(stage="sample/qwen", hash="00000000000000bb"), config={}, inputs={})
    other.commit(files=[])
    writer.publish("manifest.json", write((other.directory / "manifest.json").read_text()))
    with pytest.raises(DataError, match="belongs to sample/qwen/00000000000000bb"):
        store.open(REF)


def test_a_metric_that_is_not_a_number_is_refused(writer: ArtifactWriter) -> None:
    with pytest.raises(DataError) as error:
        writer.commit(files=[], metrics={"loss": float("nan")})
    assert error.value.message == "metric loss of sample/qwen/00000000000000aa is nan"


STORAGE_ERRORS = {
    "full": (errno.ENOSPC, "StorageFull", "the storage at /data/x is full (No space left on device)"),
    "read-only": (errno.EROFS, "StorageReadOnly", "the storage at /data/x is read-only (Read-only file system)"),
    "forbidden": (errno.EACCES, "StorageForbidden", "the storage at /data/x refuses access (Permission denied)"),
}


@pytest.mark.parametrize(("number", "code", "message"), STORAGE_ERRORS.values(), ids=STORAGE_ERRORS.keys())
def test_storage_errors_say_what_is_wrong_with_which_path(number: int, code: str, message: str) -> None:
    import os

    error = storage_error(OSError(number, os.strerror(number), "/data/x"))
    assert error is not None
    assert (error.code, error.message, error.exit_code) == (code, message, 73)
    assert error.hint


def test_other_os_errors_are_not_storage_errors() -> None:
    assert storage_error(OSError(errno.ENOENT, "No such file")) is None
