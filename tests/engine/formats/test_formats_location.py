"""Addresses of artifacts in a bucket: where the storage ends and the stage begins."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from wrpo_engine.artifacts import ArtifactStore
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import MissingInputError
from wrpo_engine.formats.location import Locator

HASH = "0123456789abcdef"
ADDRESSES = {
    "a stage of one source": ("s3://bucket/runs/sample/qwen", "s3://bucket/runs", "sample/qwen"),
    "a stage of one source, by a further reward": (
        "s3://bucket/score/qwen--length",
        "s3://bucket",
        "score/qwen--length",
    ),
    "a downloaded model": ("s3://bucket/a/b/fetch/qwen2-1a2b3", "s3://bucket/a/b", "fetch/qwen2-1a2b3"),
    "a stage of the experiment": ("s3://bucket/runs/train", "s3://bucket/runs", "train"),
    "a prefix with the name of a stage": ("s3://bucket/sample/curate-sft", "s3://bucket", "sample/curate-sft"),
    "a prefix with the name of a stage that has no sources": (
        "s3://bucket/train/report",
        "s3://bucket/train",
        "report",
    ),
}


class Nothing:
    """A storage without artifacts."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.asked: list[ArtifactRef] = []

    def open(self, ref: ArtifactRef) -> None:
        self.asked.append(ref)


class Recorder(Locator):
    def __init__(self) -> None:
        super().__init__(None, {}, lambda: datetime(2026, 1, 1, tzinfo=UTC))
        self.opened: list[Nothing] = []

    def store(self, storage: str | None = None) -> ArtifactStore:
        self.opened.append(Nothing(storage or ""))
        return self.opened[-1]  # type: ignore[return-value]


@pytest.mark.parametrize(("address", "storage", "stage"), ADDRESSES.values(), ids=ADDRESSES.keys())
@pytest.mark.parametrize("end", ["", "/"])
def test_an_address_in_a_bucket_is_a_storage_and_an_artifact(address: str, storage: str, stage: str, end: str) -> None:
    locator = Recorder()
    with pytest.raises(MissingInputError, match=f"there is no artifact {stage}/{HASH} in {storage}"):
        locator.artifact(f"{address}/{HASH}{end}")
    (opened,) = locator.opened
    assert (opened.location, opened.asked) == (storage, [ArtifactRef(stage=stage, hash=HASH)])
