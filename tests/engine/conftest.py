"""Fixtures of all engine tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from engine_support import EXPERIMENT_HASH, NOON, save_tiny_model, save_tiny_reward, stage_config

from wrpo_engine.config import ArtifactRef
from wrpo_engine.process.progress import Progress
from wrpo_engine.stage import StageContext, StopRequest, make_context


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def tiny_reward_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_reward(tmp_path_factory.mktemp("tiny-reward"))


ContextFactory = Callable[..., StageContext]


@pytest.fixture
def make_ctx(tmp_path: Path) -> ContextFactory:
    """`make_ctx(params, inputs, stage=..., hash_=..., runtime=..., shard=0, environ=...)` below tmp_path/storage."""

    def make(
        params: Mapping[str, Any] | Any,
        inputs: Mapping[str, ArtifactRef] | None = None,
        *,
        stage: str | None = None,
        hash_: str = EXPERIMENT_HASH,
        runtime: Mapping[str, Any] | None = None,
        shard: int = 0,
        environ: Mapping[str, str] | None = None,
        root: Path | None = None,
        stop: StopRequest | None = None,
    ) -> StageContext:
        config = stage_config(params, inputs, stage=stage, hash_=hash_, runtime=runtime)
        storage = root or tmp_path / "storage"
        storage.mkdir(parents=True, exist_ok=True)
        env = {
            "WRPO_VOLUME_ROOT": str(storage),
            "JOB_COMPLETION_INDEX": str(shard),
            "HF_HUB_OFFLINE": "1",
            **(environ or {}),
        }
        return make_context(config, environ=env, clock=lambda: NOON, progress=Progress(), stop=stop or StopRequest())

    return make


CommitArtifact = Callable[..., ArtifactRef]


def _fill(content: Any, path: Path) -> None:
    if isinstance(content, str):
        path.write_text(content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.write_parquet(path)


@pytest.fixture
def commit_artifact(tmp_path: Path) -> CommitArtifact:
    """`commit_artifact("prepare", {"sft.parquet": frame_or_text_or_bytes}, metrics=...)` -> its address."""

    def commit(
        stage: str,
        files: Mapping[str, Any],
        *,
        hash_: str = EXPERIMENT_HASH,
        metrics: Mapping[str, float] | None = None,
        details: Mapping[str, Any] | None = None,
        root: Path | None = None,
        inputs: Mapping[str, ArtifactRef] | None = None,
    ) -> ArtifactRef:
        from wrpo_engine.artifacts import VolumeStore
        from wrpo_engine.artifacts.manifest import InputEntry

        ref = ArtifactRef(stage=stage, hash=hash_)
        entries = {
            role: InputEntry(stage=used.stage, hash=used.hash, digest="0" * 64) for role, used in (inputs or {}).items()
        }
        writer = VolumeStore(root or tmp_path / "storage", lambda: NOON).writer(ref, config={}, inputs=entries)
        if writer.committed() is not None:
            return ref
        rows: dict[str, int] = {}
        for name, content in files.items():
            writer.publish(name, partial(_fill, content))
            if not isinstance(content, str | bytes):
                rows[name] = content.height
        writer.commit(files=files, rows=rows, metrics=metrics, details=details)
        return ref

    return commit
