"""Roots of storages: by the kind in a stage's configuration, or by what a user of a command writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from wrpo_engine.artifacts.roots import BucketRoot, DirectoryRoot, S3Server, root_at, root_of, scheme_of
from wrpo_engine.artifacts.s3_client import S3Location
from wrpo_engine.config import S3Storage, Storage, VolumeStorage
from wrpo_engine.errors import StorageError, UsageError

SERVER = {"AWS_ENDPOINT_URL": "http://[::1]:9000", "AWS_REGION": "eu-1"}


def test_a_volume_is_a_directory_below_its_mount_point(tmp_path: Path) -> None:
    root = root_of(VolumeStorage(path="lab/a"), {"WRPO_VOLUME_ROOT": str(tmp_path)})
    assert root == DirectoryRoot(tmp_path / "lab" / "a")


def test_a_volume_that_is_not_mounted_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as error:
        root_of(VolumeStorage(), {"WRPO_VOLUME_ROOT": str(tmp_path / "none")})
    assert (error.value.code, error.value.field) == ("StorageMissing", "storage")
    assert str(error.value) == f"there is no directory {tmp_path / 'none'}, where the storage volume should be mounted"


def test_a_bucket_is_the_one_of_the_configuration_whatever_the_environment_says() -> None:
    storage = S3Storage(uri="s3://lab/wrpo/", region="us-2")
    root = root_of(storage, SERVER)
    assert root == BucketRoot(storage, SERVER)
    assert root.location == "s3://lab/wrpo"


def test_a_location_without_a_scheme_is_a_directory() -> None:
    assert root_at("results/a", {}) == DirectoryRoot(Path("results/a"))
    assert scheme_of("results/s3:/a") is None


def test_the_server_of_a_named_bucket_comes_from_the_environment_or_the_command() -> None:
    uri = "s3://Old_Bucket/with space/ü"
    assert root_at(uri, SERVER) == BucketRoot(S3Location(uri, "http://[::1]:9000", "eu-1"), SERVER)
    assert root_at(uri, SERVER, server=S3Server("http://s3")) == BucketRoot(S3Location(uri, "http://s3"), SERVER)


@pytest.mark.parametrize("location", ["gs://bucket/prefix", "S3://bucket", "file:///tmp", "://x"])
def test_a_scheme_of_no_kind_of_storage_is_refused(location: str) -> None:
    scheme = location.partition("://")[0]
    with pytest.raises(UsageError) as error:
        root_at(location, {})
    assert str(error.value) == f"{location}: nothing is written to {scheme}://"
    assert error.value.hint == "Write a path, s3://BUCKET/PATH or storage://PATH."


@pytest.mark.parametrize("uri", ["s3://", "s3:///prefix"])
def test_a_uri_without_a_bucket_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match=f"^{uri} names no bucket$"):
        root_at(uri, {})


@pytest.mark.parametrize(
    ("storage", "place", "told"),
    [
        ({"kind": "gcs", "uri": "gs://b"}, (), "Input tag 'gcs' found using 'kind' does not match"),
        ({}, (), "Unable to extract tag using discriminator 'kind'"),
        ({"kind": "volume", "path": "../x"}, ("volume", "path"), "String should match pattern"),
        ({"kind": "volume", "path": "/x"}, ("volume", "path"), "String should match pattern"),
        ({"kind": "s3", "uri": "gs://bucket/x"}, ("s3", "uri"), "String should match pattern"),
        ({"kind": "s3", "uri": "s3://abc", "claimName": "c"}, ("s3", "claimName"), "Extra inputs are not permitted"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_configuration_of_another_kind_or_form_is_refused(
    storage: dict[str, Any], place: tuple[str, ...], told: str
) -> None:
    with pytest.raises(ValidationError, match=told) as error:
        TypeAdapter(Storage).validate_python(storage)
    assert error.value.errors()[0]["loc"] == place
