"""What a writer finds, fetches, removes and leaves behind on a volume, and what it says."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_support import NOON
from pydantic import ValidationError
from volume_support import REF, fill

from wrpo_engine.artifacts import ArtifactWriter, VolumeStore, base, manifest, volume
from wrpo_engine.artifacts.verified import is_recorded, record
from wrpo_engine.errors import AlreadyCommitted, DataError, MissingInputError


def counted(real: Callable[..., Any], number: int, failures: int) -> tuple[Callable[..., Any], list[object]]:
    """Return a call that fails so often, and what it was called with."""
    calls: list[object] = []

    def call(*arguments: Any, **more: Any) -> Any:
        calls.append(arguments)
        if len(calls) <= failures:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **more)

    return call, calls


STALE: dict[str, tuple[int, int, int | None, int]] = {
    "stale twice is read a third time": (errno.ESTALE, 2, None, 3),
    "stale three times is an error": (errno.ESTALE, 3, errno.ESTALE, 3),
    "any other error is one at once": (errno.EIO, 1, errno.EIO, 1),
}


@pytest.mark.parametrize(("number", "failures", "error", "reads"), STALE.values(), ids=STALE.keys())
def test_only_stale_handles_are_opened_again_and_twice_at_most(
    store: VolumeStore,
    writer: ArtifactWriter,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    failures: int,
    error: int | None,
    reads: int,
) -> None:
    writer.commit(files=[])
    call, calls = counted(Path.read_bytes, number, failures)
    monkeypatch.setattr(Path, "read_bytes", call)
    if error is None:
        assert store.open(REF) is not None
    else:
        with pytest.raises(OSError, match=r".") as raised:
            store.open(REF)
        assert raised.value.errno == error
    assert len(calls) == reads


def test_a_file_in_the_place_of_the_directory_is_no_artifact(store: VolumeStore, tmp_path: Path) -> None:
    (tmp_path / "score").write_text("no directory")
    assert store.open(REF) is None


def test_the_loss_of_a_name_to_another_writer_is_logged(
    writer: ArtifactWriter, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="wrpo_engine"):
        writer.publish("rows", fill)
        assert caplog.messages == []
        writer.publish("rows", lambda path: path.write_text("other"))
    assert caplog.messages == [
        "another writer has published rows of score/a/00000000000000aa before; its content stays"
    ]
    assert writer.fetch("rows").read_text() == "hello"


def test_published_names_neither_the_manifest_nor_what_is_being_written(writer: ArtifactWriter) -> None:
    for name in ("parts/b", "parts/a", "other", "parts/.tmp-1-c"):
        writer.publish(name, fill)
    (writer.directory / "manifest.json").write_text("{}")
    assert writer.published() == ["other", "parts/a", "parts/b"]
    assert writer.published("parts/") == ["parts/a", "parts/b"]
    assert writer.published("nobody") == []


def test_an_unfinished_file_that_is_gone_is_named_and_a_directory_is_none(writer: ArtifactWriter) -> None:
    writer.publish("parts/a", fill)
    assert [path.read_text() for path in writer.fetch_all(["parts/a"])] == ["hello"]
    for name in ("parts/b", "parts"):
        with pytest.raises(MissingInputError) as error:
            writer.fetch_all(["parts/a", name])
        assert error.value.message == (
            f"file {name} of the unfinished artifact score/a/00000000000000aa does not exist"
        )


def test_discarding_removes_the_files_and_the_directories_that_are_empty_then(writer: ArtifactWriter) -> None:
    for name in ("step-1/a/x", "step-1/y", "step-2/x", "steps"):
        writer.publish(name, fill)
    writer.publish("step-1/.tmp-z", fill)
    (writer.directory / "empty").mkdir()
    writer.discard("step-1/")
    left = sorted(path.relative_to(writer.directory).as_posix() for path in writer.directory.rglob("*"))
    assert left == ["empty", "step-1", "step-1/.tmp-z", "step-2", "step-2/x", "steps"]
    writer.discard("step-2/")
    assert not (writer.directory / "step-2").exists()
    writer.publish("deep/a/b/x", fill)
    writer.discard("deep/")
    assert not (writer.directory / "deep").exists()
    writer.discard("nobody/")
    assert (writer.directory / "empty").is_dir()


def test_a_file_that_another_one_removes_meanwhile_is_discarded(
    writer: ArtifactWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.publish("rows", fill)
    monkeypatch.setattr(type(writer), "published", lambda _writer, _prefix="": ["gone", "rows"])
    writer.discard("")
    assert not (writer.directory / "rows").exists()


@pytest.mark.parametrize(
    ("flags", "number"), [(os.ST_RDONLY, errno.EROFS), (0, errno.EACCES)], ids=["read-only", "no right"]
)
def test_a_volume_that_cannot_be_written_is_named_with_its_cause(
    writer: ArtifactWriter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: int, number: int
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path or mode != os.W_OK)
    monkeypatch.setattr(os, "statvfs", lambda _path: SimpleNamespace(f_flag=flags | os.ST_NOSUID))
    with pytest.raises(OSError, match=os.strerror(number)) as error:
        writer.begin()
    assert (error.value.errno, error.value.filename) == (number, str(tmp_path))


@pytest.mark.parametrize(("age_s", "stays"), [(3599.0, True), (3600.0, True), (3600.5, False)])
def test_a_commit_removes_leftovers_older_than_an_hour(writer: ArtifactWriter, age_s: float, stays: bool) -> None:
    left = writer.publish(".tmp-left", fill)
    old = writer.publish("rows", fill)
    for path in (left, old):
        os.utime(path, (NOON.timestamp() - age_s,) * 2)
    writer.commit(files=["rows"])
    assert (left.exists(), old.exists()) == (stays, True)


def test_a_digest_that_is_known_is_not_computed_again(writer: ArtifactWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("known", "unknown"):
        writer.publish(name, fill)
    read: list[str] = []

    def sha256_of(path: Path) -> str:
        read.append(path.name)
        return "f" * 64

    monkeypatch.setattr(volume, "sha256_of", sha256_of)
    artifact = writer.commit(files=["unknown", "known", "known"], sha256={"known": "e" * 64}, rows={"known": 3})
    assert read == ["unknown"]
    assert [(entry.name, entry.sha256[0], entry.rows) for entry in artifact.manifest.files] == [
        ("known", "e", 3),
        ("unknown", "f", None),
    ]
    assert artifact.manifest.rows == 3


def test_a_writer_without_files_commits_into_a_directory_that_is_not_there(
    store: VolumeStore, writer: ArtifactWriter, tmp_path: Path
) -> None:
    artifact = writer.commit(files=[])
    assert (tmp_path / "score/a/00000000000000aa/manifest.json").read_bytes().endswith(b"}\n")
    assert (artifact.files(), artifact.manifest.rows) == ([], 0)
    assert store.location == str(tmp_path)
    assert store.local_copy("score/a") == tmp_path / "score/a"


def test_after_the_commit_nothing_is_published_and_nothing_is_left_behind(writer: ArtifactWriter) -> None:
    writer.publish("rows", fill)
    writer.commit(files=["rows"])
    with pytest.raises(AlreadyCommitted) as error:
        writer.publish("more", fill)
    assert error.value.message == "another writer has committed score/a/00000000000000aa; more is not published"
    assert sorted(path.name for path in writer.directory.iterdir()) == ["manifest.json", "rows"]


def test_a_name_that_the_manifest_does_not_list_is_refused(store: VolumeStore, writer: ArtifactWriter) -> None:
    writer.publish("rows", fill)
    writer.publish("stray", fill)
    artifact = writer.commit(files=["rows"])
    for fetch in (artifact.file, lambda name: artifact.fetch_all([name])):
        with pytest.raises(DataError) as error:
            fetch("stray")
        assert error.value.message == "artifact score/a/00000000000000aa has no file 'stray'; its files: rows"


def test_a_file_is_compared_once_by_one_reader(writer: ArtifactWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    writer.publish("parts/a", fill)
    writer.publish("b", fill)
    artifact = writer.commit(files=["parts/a", "b"])
    assert (artifact.files(), artifact.files("parts/")) == (["b", "parts/a"], ["parts/a"])
    read: list[str] = []

    def sha256_of(path: Path) -> str:
        read.append(path.name)
        return manifest.sha256_of(path)

    monkeypatch.setattr(volume, "sha256_of", sha256_of)
    for _ in range(2):
        assert artifact.file("b") == writer.directory / "b"
    assert read == ["b"]


def test_small_files_are_fetched_together_and_large_ones_by_themselves(
    writer: ArtifactWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("few", "abc"), ("many", "abcd")):
        writer.publish(name, lambda path, text=text: path.write_text(text))  # type: ignore[misc]
    artifact = writer.commit(files=["few", "many"])
    together: list[str] = []
    monkeypatch.setattr(base, "SMALL_BYTES", 3)
    monkeypatch.setattr(base, "in_parallel", lambda _call, names, **_more: together.extend(names))
    assert artifact.fetch_all(["many", "few"]) == [writer.directory / "many", writer.directory / "few"]
    assert together == ["few", "many"]


def test_a_digest_is_of_the_whole_file_however_many_blocks_it_has(tmp_path: Path) -> None:
    import hashlib

    content = bytes(range(256)) * 10_000
    (tmp_path / "large").write_bytes(content)
    assert manifest.sha256_of(tmp_path / "large") == hashlib.sha256(content).hexdigest()


def test_a_record_holds_for_the_very_file_and_digest_that_were_compared(tmp_path: Path) -> None:
    path = tmp_path / "model/large"
    path.parent.mkdir()
    fill(path)
    entry = manifest.FileEntry(name="model/large", size=5, sha256="a" * 64)
    assert not is_recorded(tmp_path, entry, path.stat())
    for _ in range(2):
        record(tmp_path, entry, path.stat())
        assert is_recorded(tmp_path, entry, path.stat())
    assert [found.name for found in (tmp_path / ".verified/model").iterdir()] == ["large.ok"]
    assert not is_recorded(tmp_path, entry.model_copy(update={"sha256": "b" * 64}), path.stat())
    (tmp_path / ".verified/model/large.ok").write_text("{")
    assert not is_recorded(tmp_path, entry, path.stat())
    record(tmp_path, entry, path.stat())
    assert is_recorded(tmp_path, entry, path.stat())
    os.utime(path, ns=(0, 1))
    assert not is_recorded(tmp_path, entry, path.stat())


def test_publishing_and_committing_leave_no_file_open(writer: ArtifactWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    closed: list[int] = []
    real_open, real_close = os.open, os.close

    def open_(*arguments: Any, **more: Any) -> int:
        opened.append(real_open(*arguments, **more))
        return opened[-1]

    def close(descriptor: int) -> None:
        closed.append(descriptor)
        real_close(descriptor)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "close", close)
    writer.publish("rows", fill)
    writer.commit(files=["rows"])
    assert len(opened) >= 4
    assert closed == opened


def test_a_link_whose_reply_was_lost_is_no_loss_to_another_writer(
    writer: ArtifactWriter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = os.link

    def link_twice(source: Any, target: Any) -> None:
        real(source, target)
        real(source, target)

    monkeypatch.setattr(os, "link", link_twice)
    with caplog.at_level(logging.INFO, logger="wrpo_engine"):
        assert writer.publish("rows", fill).read_text() == "hello"
    assert caplog.messages == []


def test_the_loss_of_a_name_is_logged_without_hard_links_too(
    writer: ArtifactWriter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    call, _ = counted(os.link, errno.EPERM, 99)
    monkeypatch.setattr(os, "link", call)
    with caplog.at_level(logging.INFO, logger="wrpo_engine"):
        writer.publish("rows", fill)
        assert caplog.messages == []
        writer.publish("rows", lambda path: path.write_text("other"))
    assert len(caplog.messages) == 1
    assert writer.fetch("rows").read_text() == "hello"


def test_no_record_is_written_of_a_file_of_few_bytes(writer: ArtifactWriter) -> None:
    writer.publish("rows", fill)
    assert writer.commit(files=["rows"]).file("rows").read_text() == "hello"
    assert sorted(path.name for path in writer.directory.iterdir()) == ["manifest.json", "rows"]


def test_a_manifest_is_the_same_bytes_for_the_same_content_and_cannot_be_changed(writer: ArtifactWriter) -> None:
    made = writer.commit(files=[]).manifest
    lines = (writer.directory / "manifest.json").read_text().splitlines()
    assert lines[:4] == ["{", ' "schema_version": 1,', ' "stage": "score/a",', ' "hash": "00000000000000aa",']
    with pytest.raises(ValidationError, match="frozen"):
        made.stage = "other"  # type: ignore[misc] # refused when it runs too
