"""One real S3 server for all tests of storage, and stores in a bucket of their own."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine_support import NOON
from support.fault_proxy import FaultProxy, fault_proxy
from support.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from volume_support import REF

from wrpo_engine.artifacts import ArtifactWriter, VolumeStore
from wrpo_engine.artifacts.s3 import S3Store
from wrpo_engine.artifacts.s3_client import S3Location


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3")).start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def bucket(s3: S3Server) -> str:
    return s3.make_bucket("wrpo-tests")


@pytest.fixture
def root(bucket: str) -> str:
    """The storage root of one test: a prefix that no other test has."""
    return f"{uuid.uuid4().hex[:8]}/wrpo"


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(s3.endpoint) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> VolumeStore:
    return VolumeStore(tmp_path, lambda: NOON)


@pytest.fixture
def writer(store: VolumeStore) -> ArtifactWriter:
    return store.writer(REF, config={}, inputs={})


Connect = Callable[..., S3Store]


@pytest.fixture(autouse=True)
def s3_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a pod gets from the credentials Secret, and nothing of the machine's own settings."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def connect(s3: S3Server, bucket: str, root: str, tmp_path: Path) -> Connect:
    """`connect(pod="a", endpoint=..., uri=..., **environ)`: a store as a pod with that cache opens it."""

    def open_store(pod: str = "a", *, endpoint: str | None = None, uri: str | None = None, **environ: str) -> S3Store:
        storage = S3Location(uri=uri or f"s3://{bucket}/{root}", endpoint=endpoint or s3.endpoint)
        env = {
            "WRPO_SCRATCH": str(tmp_path / f"pod-{pod}"),
            "WRPO_STORAGE_PATIENCE_SECONDS": "20",
            "AWS_MAX_ATTEMPTS": "1",
            **environ,
        }
        return S3Store.connect(storage, env, lambda: NOON)

    return open_store
