"""Readers of a fetched model: none of them reads the weights again to verify them, unless they changed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_support import NOON
from inspecting_support import files_of, run_stage
from support.hub_server import Hub, hub_server, use_hub

from wrpo_engine.artifacts import VolumeStore, volume
from wrpo_engine.artifacts.manifest import sha256_of
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import DataError

REF = ArtifactRef(stage="fetch/tiny", hash="00000000000000aa")
LARGE = 64 << 10
"""Files above this are weights here."""


@pytest.fixture
def hub(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server(Hub("org/tiny", files_of(tiny_model_dir))) as running:
        use_hub(monkeypatch, running)
        yield running


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes that were read to verify each large file."""
    counted: dict[str, int] = {}

    def counting(path: Path) -> str:
        if path.stat().st_size > LARGE:
            counted[path.name] = counted.get(path.name, 0) + path.stat().st_size
        return sha256_of(path)

    monkeypatch.setattr(volume, "SMALL_BYTES", LARGE)
    monkeypatch.setattr(volume, "sha256_of", counting)
    return counted


def consume(root: Path) -> list[Path]:
    artifact = VolumeStore(root, lambda: NOON).open(REF)
    assert artifact is not None
    return artifact.fetch_all(artifact.files("model/"))


def test_no_reader_of_a_fetched_model_reads_its_weights_to_verify_them(
    tmp_path: Path, hub: Hub, read: dict[str, int]
) -> None:
    assert run_stage(tmp_path, {"stage": "fetch", "model": {"name": "org/tiny"}}, ref=REF)[0] == 0
    for _ in range(3):
        paths = consume(tmp_path / "storage")
        assert {path.name: path.read_bytes() for path in paths} == hub.files
    assert read == {}


def test_weights_that_were_altered_after_the_fetch_are_found(tmp_path: Path, hub: Hub, read: dict[str, int]) -> None:
    assert run_stage(tmp_path, {"stage": "fetch", "model": {"name": "org/tiny"}}, ref=REF)[0] == 0
    (weights,) = (path for path in consume(tmp_path / "storage") if path.name == "model.safetensors")
    content = weights.read_bytes()
    with weights.open("r+b") as file:
        file.seek(len(content) - 1)
        file.write(b"x" if content[-1:] != b"x" else b"y")
    with pytest.raises(DataError, match="was altered"):
        consume(tmp_path / "storage")
    assert read == {"model.safetensors": len(content)}


def test_weights_of_an_older_fetch_are_read_once(tmp_path: Path, hub: Hub, read: dict[str, int]) -> None:
    assert run_stage(tmp_path, {"stage": "fetch", "model": {"name": "org/tiny"}}, ref=REF)[0] == 0
    root = tmp_path / "storage"
    shutil.rmtree(root / REF.stage / REF.hash / ".verified")
    for _ in range(3):
        consume(root)
    assert read == {"model.safetensors": len(hub.files["model.safetensors"])}
