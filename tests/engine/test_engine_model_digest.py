"""The digest of a model directory, and when a large file is read again for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from wrpo_engine.hub import model_digest
from wrpo_engine.hub.model_digest import DigestMemory


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read; every file counts as large."""
    paths: list[Path] = []
    original = model_digest.sha256_of

    def sha256_of(path: Path) -> str:
        paths.append(path)
        return original(path)

    monkeypatch.setattr(model_digest, "sha256_of", sha256_of)
    monkeypatch.setattr(model_digest, "_LARGE_BYTES", 0)
    return paths


def _write_back_in_time(path: Path) -> None:
    before = path.stat()
    path.write_bytes(b"wEights")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"WEIGHTS")
    other.replace(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "other weights": lambda path: path.write_bytes(b"other weights"),
    "other weights of the same size and time": _write_back_in_time,
    "another file of the same size": _replace,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_large_file_is_read_once_until_it_changes(
    change: Callable[[Path], object], model_file: Path, read: list[Path], tmp_path: Path
) -> None:
    memory = DigestMemory(tmp_path / "inputs/digests.json")
    first = [memory.sha256_of(model_file) for _ in range(3)]
    assert read == [model_file]
    change(model_file)
    assert memory.sha256_of(model_file) != first[0]
    assert read == [model_file] * 2
    assert set(first) == {first[0]}


def test_a_small_file_is_always_read(model_file: Path, tmp_path: Path) -> None:
    memory = DigestMemory(tmp_path / "digests.json")
    assert memory.sha256_of(model_file) == model_digest.sha256_of(model_file)
    assert not (tmp_path / "digests.json").exists()


def test_a_damaged_memory_is_forgotten(model_file: Path, read: list[Path], tmp_path: Path) -> None:
    (tmp_path / "digests.json").write_text("{")
    memory = DigestMemory(tmp_path / "digests.json")
    assert memory.sha256_of(model_file) == memory.sha256_of(model_file)
    assert read == [model_file]
