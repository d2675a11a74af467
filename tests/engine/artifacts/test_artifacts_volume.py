"""A volume that behaves as network file systems do: stale handles, lost replies, no hard links, no directory sync."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from volume_support import REF, fill

from wrpo_engine.artifacts import ArtifactWriter, VolumeStore, manifest, volume
from wrpo_engine.artifacts.cache import LocalCache
from wrpo_engine.artifacts.parts import commit_when_complete, part_name
from wrpo_engine.artifacts.s3 import Copies, S3Artifact
from wrpo_engine.errors import DataError


def failing(real: Callable[..., Any], number: int, times: int) -> Callable[..., Any]:
    left = [times]

    def call(*arguments: Any, **more: Any) -> Any:
        if left[0] > 0:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return real(*arguments, **more)

    return call


def test_a_handle_that_went_stale_is_opened_again(
    store: VolumeStore, writer: ArtifactWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.publish("rows", fill)
    writer.commit(files=["rows"])
    for name in ("read_bytes", "open", "stat"):
        monkeypatch.setattr(Path, name, failing(getattr(Path, name), errno.ESTALE, 1))
    artifact = store.open(REF)
    assert artifact is not None
    assert artifact.file("rows").name == "rows"


def test_a_handle_that_stays_stale_is_an_error(
    store: VolumeStore, writer: ArtifactWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.commit(files=[])
    monkeypatch.setattr(Path, "read_bytes", failing(Path.read_bytes, errno.ESTALE, 99))
    with pytest.raises(OSError, match="Stale"):
        store.open(REF)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_without_hard_links_a_manifest_is_renamed_into_place_and_the_first_stays(
    store: VolumeStore, writer: ArtifactWriter, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "link", failing(os.link, number, 99))
    first = writer.commit(files=[], metrics={"first": 1.0})
    writer._put_manifest(b"late")  # type: ignore[attr-defined]
    found = store.open(REF)
    assert found is not None
    assert found.digest == first.digest
    assert [path.name for path in writer.directory.iterdir()] == ["manifest.json"]


def test_a_link_whose_reply_was_lost_counts(
    store: VolumeStore, writer: ArtifactWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def link_twice(source: Any, target: Any) -> None:
        # The client sends the request again because the first reply was lost.
        real(source, target)
        real(source, target)

    monkeypatch.setattr(os, "link", link_twice)
    made = writer.commit(files=[])
    found = store.open(REF)
    assert found is not None
    assert found.digest == made.digest


def test_a_full_volume_does_not_turn_a_link_into_a_rename(
    writer: ArtifactWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", failing(os.link, errno.ENOSPC, 1))
    with pytest.raises(OSError, match="No space left"):
        writer.commit(files=[])
    assert writer.committed() is None
    assert list(writer.directory.iterdir()) == []


def test_a_directory_that_cannot_be_synced_is_no_error_but_a_file_is(
    writer: ArtifactWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    import stat

    real = os.fsync

    def only(kind: Callable[[int], bool]) -> Callable[[int], None]:
        def sync(descriptor: int) -> None:
            if kind(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "Invalid argument")
            real(descriptor)

        return sync

    monkeypatch.setattr(os, "fsync", only(stat.S_ISDIR))
    writer.publish("rows", fill)
    monkeypatch.setattr(os, "fsync", only(stat.S_ISREG))
    with pytest.raises(OSError, match="Invalid argument"):
        writer.publish("more", fill)
    monkeypatch.setattr(os, "fsync", only(stat.S_ISDIR))
    assert writer.commit(files=["rows"]).file("rows").read_text() == "hello"


def test_a_volume_that_cannot_be_written_is_found_before_any_work(
    writer: ArtifactWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.begin()
    # The tests may run as root, whom permissions do not stop.
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    with pytest.raises(PermissionError):
        writer.begin()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read for their checksum; three bytes are large."""
    names: list[str] = []

    def sha256_of(path: Path) -> str:
        names.append(path.name)
        return manifest.sha256_of(path)

    monkeypatch.setattr(volume, "sha256_of", sha256_of)
    monkeypatch.setattr(volume, "SMALL_BYTES", 3)
    return names


def test_a_large_file_is_compared_once_for_all_processes_and_again_after_a_change(
    store: VolumeStore, writer: ArtifactWriter, hashed: list[str]
) -> None:
    writer.publish("model/large", fill)
    writer.publish("few", lambda path: path.write_text("abc"))
    writer.commit(files=["model/large", "few"])
    assert sorted(hashed) == ["few", "large"]

    def read_twice() -> list[str]:
        hashed.clear()
        for _ in range(2):
            opened = store.open(REF)
            assert opened is not None
            assert opened.fetch_all(["model/large", "few"])[0].read_text() == "hello"
        return sorted(hashed)

    assert read_twice() == ["few", "few"]
    # As an older version left it.
    shutil.rmtree(writer.directory / ".verified")
    assert read_twice() == ["few", "few", "large"]
    assert sorted(path.name for path in (writer.directory / "model").iterdir()) == ["large"]
    path = writer.directory / "model/large"
    path.write_text("hullo")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    reopened = store.open(REF)
    assert reopened is not None
    with pytest.raises(DataError, match="was altered"):
        reopened.file("model/large")


def test_where_no_record_can_be_written_a_large_file_is_compared_every_time(
    store: VolumeStore, writer: ArtifactWriter, hashed: list[str]
) -> None:
    # The tests may run as root, whom permissions do not stop.
    writer.directory.mkdir(parents=True)
    (writer.directory / ".verified").write_text("no directory")
    writer.publish("large", fill)
    writer.commit(files=["large"])
    hashed.clear()
    for _ in range(2):
        opened = store.open(REF)
        assert opened is not None
        assert opened.file("large").read_text() == "hello"
    assert hashed == ["large", "large"]


BROKEN = {
    "another version": ('{"schema_version": 2}', "has schema version 2; this engine .* reads version 1"),
    "a list": ("[]", "is not a valid manifest"),
    "half a manifest": ('{"stage": "score/a", ', "is not a valid manifest"),
}


@pytest.mark.parametrize(("content", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_manifest_is_named(store: VolumeStore, writer: ArtifactWriter, content: str, words: str) -> None:
    writer.directory.mkdir(parents=True)
    (writer.directory / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=words) as error:
        store.open(REF)
    assert str(writer.directory / "manifest.json") in error.value.message
    assert error.value.hint


def test_a_part_that_is_listed_but_gone_is_named(writer: ArtifactWriter) -> None:
    writer.publish(part_name(0), fill)
    writer.commit(files=[part_name(0)])
    (writer.directory / part_name(0)).unlink()
    with pytest.raises(DataError, match=r"part-00000\.parquet of artifact score/a/0+aa is missing"):
        writer.committed()


def test_a_part_that_is_no_parquet_is_named(make_ctx: Any) -> None:
    ctx = make_ctx({"stage": "score", "reward": {"name": "x"}}, stage="score/a")
    ctx.output.publish(part_name(0), lambda path: pl.DataFrame({"x": [1]}).write_parquet(path))
    ctx.output.publish(part_name(1), fill)
    with pytest.raises(DataError, match=r"part parts/part-00001\.parquet of score/a/\w+ .* cannot be read") as error:
        commit_when_complete(
            ctx, [part_name(0), part_name(1)], details={}, measure=lambda frames: {"n": len([*frames])}
        )
    assert error.value.code == "ArtifactDamaged"
    assert ctx.output.committed() is None


def test_parts_are_measured_one_by_one_and_counted_even_if_the_measure_stops_early(make_ctx: Any) -> None:
    ctx = make_ctx({"stage": "score", "reward": {"name": "x"}}, stage="score/a")
    names = [part_name(index) for index in range(3)]
    for index, name in enumerate(names):
        ctx.output.publish(name, pl.DataFrame({"x": list(range(index + 1))}).write_parquet)
    commit_when_complete(ctx, names, details={}, measure=lambda frames: {"first": float(next(iter(frames)).height)})
    manifest = ctx.output.committed().manifest
    assert [entry.rows for entry in manifest.files] == [1, 2, 3]
    assert manifest.metrics == {"first": 1.0}


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reaches the disk in which order: synced files and directories, links and renames, by name."""
    seen: list[str] = []
    fsync, link, replace = os.fsync, os.link, Path.replace

    def named(path: object) -> str:
        name = Path(str(path)).name
        return "temporary" if name.startswith(".tmp-") else name

    def synced(descriptor: int) -> None:
        seen.append(f"sync {named(Path(f'/proc/self/fd/{descriptor}').readlink())}")
        fsync(descriptor)

    def linked(source: object, target: object) -> None:
        seen.append(f"link {named(source)} {named(target)}")
        link(str(source), str(target))

    def replaced(source: Path, target: Path) -> Path:
        seen.append(f"replace {named(source)} {named(target)}")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", linked)
    monkeypatch.setattr(Path, "replace", replaced)
    return seen


def test_content_is_durable_before_its_name_and_the_name_before_publishing_returns(
    writer: ArtifactWriter, order: list[str]
) -> None:
    writer.publish("part", fill)
    assert order == ["sync temporary", "link temporary part", f"sync {REF.hash}"]
    order.clear()
    writer.publish("part", fill, replace=True)
    assert order == ["sync temporary", "replace temporary part", f"sync {REF.hash}"]


def test_files_are_durable_before_the_manifest_and_the_manifest_before_its_name(
    writer: ArtifactWriter, order: list[str]
) -> None:
    writer.directory.mkdir(parents=True)
    fill(writer.directory / "rows")
    writer.commit(files=["rows"])
    assert order == [
        "sync rows",
        f"sync {REF.hash}",
        "sync temporary",
        "link temporary manifest.json",
        f"sync {REF.hash}",
    ]


def test_a_large_file_that_changes_while_it_is_compared_is_compared_again(
    store: VolumeStore, writer: ArtifactWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume, "SMALL_BYTES", 2)
    writer.publish("rows", fill)
    writer.commit(files=["rows"])
    shutil.rmtree(writer.directory / ".verified")
    compared = []

    def changing(path: Path) -> str:
        found = manifest.sha256_of(path)
        compared.append(path.name)
        if len(compared) == 1:
            later = path.stat().st_mtime_ns + 10**9
            os.utime(path, ns=(later, later))
        return found

    monkeypatch.setattr(volume, "sha256_of", changing)
    for expected in (1, 2, 2):
        artifact = store.open(REF)
        assert artifact is not None
        artifact.file("rows")
        assert len(compared) == expected
        if expected == 1:
            # Back to what the first look saw: a record of that look would be believed.
            earlier = (writer.directory / "rows").stat().st_mtime_ns - 10**9
            os.utime(writer.directory / "rows", ns=(earlier, earlier))


def test_a_copy_of_an_object_counts_only_with_the_digest_that_the_manifest_says(tmp_path: Path) -> None:
    """Which the record says: the copy itself is not read again."""
    cache = LocalCache(tmp_path)
    full = f"{REF.stage}/{REF.hash}/rows"
    cache.path(full).parent.mkdir(parents=True)
    fill(cache.path(full))
    bucket: Any = None
    entry = manifest.FileEntry(name="rows", size=5, sha256=hashlib.sha256(b"hello").hexdigest())
    said: Any = None
    artifact = S3Artifact(REF, said, "", tmp_path, Copies(bucket, cache))
    for sha256, is_here in ((entry.sha256, True), ("0" * 64, False)):
        cache.path(full).parent.mkdir(parents=True, exist_ok=True)
        with cache.lock(full):
            cache.remember(full, etag="1", sha256=sha256)
        assert artifact._is_here(full, entry) is is_here


LOCAL: dict[str, tuple[str | None, bool]] = {
    "nothing": (None, False),
    "what the manifest says": ("hello", True),
    "as many other bytes": ("hullo", False),
    "fewer bytes": ("hell", False),
}


@pytest.mark.parametrize(("content", "is_here"), LOCAL.values(), ids=LOCAL.keys())
def test_a_file_that_this_pod_wrote_itself_counts_if_it_is_what_the_manifest_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, is_here: bool
) -> None:
    cache = LocalCache(tmp_path)
    full = f"{REF.stage}/{REF.hash}/rows"
    path = cache.path(full)
    path.parent.mkdir(parents=True)
    if content is not None:
        path.write_text(content)
    read: list[str] = []

    def sha256_of(path: Path) -> str:
        read.append(path.name)
        return manifest.sha256_of(path)

    monkeypatch.setattr("wrpo_engine.artifacts.s3.sha256_of", sha256_of)
    unused: Any = None
    entry = manifest.FileEntry(name="rows", size=5, sha256=hashlib.sha256(b"hello").hexdigest())
    artifact = S3Artifact(REF, unused, "", tmp_path, Copies(unused, cache))
    assert artifact._is_here(full, entry) is is_here
    # One of another size is not read.
    assert read == (["rows"] if content is not None and len(content) == 5 else [])


def test_a_file_that_changes_while_it_is_committed_is_compared_by_its_readers(
    store: VolumeStore, writer: ArtifactWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume, "SMALL_BYTES", 2)

    def changing(path: Path) -> str:
        found = manifest.sha256_of(path)
        later = path.stat().st_mtime_ns + 10**9
        path.write_text("hullo")
        os.utime(path, ns=(later, later))
        return found

    writer.publish("rows", fill)
    with monkeypatch.context() as patch:
        patch.setattr(volume, "sha256_of", changing)
        writer.commit(files=["rows"])
    artifact = store.open(REF)
    assert artifact is not None
    with pytest.raises(DataError, match="was altered"):
        artifact.file("rows")


def test_a_digest_that_the_writer_knows_is_recorded_unless_another_writer_was_first(
    store: VolumeStore, writer: ArtifactWriter, hashed: list[str]
) -> None:
    digest = hashlib.sha256(b"hello").hexdigest()
    writer.publish("own", fill, sha256=digest)
    store.writer(REF, config={}, inputs={}).publish("other", lambda path: path.write_text("other"))
    writer.publish("other", fill, sha256=digest)
    assert writer.published() == ["other", "own"]
    writer.commit(files=["own", "other"], sha256={"own": digest})
    hashed.clear()
    artifact = store.open(REF)
    assert artifact is not None
    assert [path.read_text() for path in artifact.fetch_all(["own", "other"])] == ["hello", "other"]
    assert hashed == []
    assert writer.published() == ["other", "own"]
