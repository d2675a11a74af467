"""A bucket seen as a whole."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from support.s3_server import S3Server

from wrpo_engine.artifacts.inventory import S3Inventory
from wrpo_engine.artifacts.s3 import S3Store
from wrpo_engine.config import ArtifactRef

Connect = Callable[..., S3Store]


def fill(path: Path) -> None:
    path.write_bytes(b"hello")


def test_artifacts_of_a_bucket_are_listed_and_removed_manifest_first(
    connect: Connect, s3: S3Server, bucket: str, root: str
) -> None:
    store = connect()
    for hash_, complete in (("00000000000000aa", True), ("00000000000000bb", False)):
        writer = store.writer(ArtifactRef(stage="sample/a", hash=hash_), config={}, inputs={})
        writer.begin()
        writer.publish("parts/1", fill)
        if complete:
            writer.commit(files=["parts/1"])
    s3.client().put_object(Bucket=bucket, Key=f"{root}/models/m/config.json", Body=b"{}")
    s3.client().put_object(Bucket=bucket, Key=f"{root}/sample/readme.txt", Body=b"{}")
    inventory = S3Inventory(store.copies.bucket)
    whole, half = inventory.artifacts()
    assert [(each.address, each.state, each.files) for each in (whole, half)] == [
        ("sample/a/00000000000000aa", "Complete", 2),
        ("sample/a/00000000000000bb", "Unfinished", 2),
    ]
    assert whole.manifest is not None
    assert (datetime.now(UTC) - whole.modified).total_seconds() < 120
    inventory.remove(whole)
    inventory.remove(half)
    assert inventory.artifacts() == []
    assert s3.keys(bucket, root) == [f"{root}/models/m/config.json", f"{root}/sample/readme.txt"]


def test_uploads_that_never_ended_are_found_and_given_up(
    connect: Connect, s3: S3Server, bucket: str, root: str
) -> None:
    for name in ("train/00000000000000aa/model/w.safetensors", "models/mine/w.safetensors"):
        s3.client().create_multipart_upload(Bucket=bucket, Key=f"{root}/{name}")
    inventory = S3Inventory(connect().copies.bucket)
    (upload,) = inventory.uploads()
    assert upload.key == "train/00000000000000aa/model/w.safetensors"
    inventory.abort(upload)
    assert inventory.uploads() == []
