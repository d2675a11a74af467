"""Inspection of a model in a bucket: by ranges of its objects, without a local copy of the weights."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from inspecting_support import INDEX, files_of, inspect, run_stage, shard, use
from support.fault_proxy import FaultProxy
from support.hub_server import Hub, hub_server, use_hub
from support.s3_server import S3Server

from wrpo_engine.config import ArtifactRef, S3Storage, TerminationMessage

FETCH = ArtifactRef(stage="fetch/tiny", hash="00000000000000bb")
USES = [use("train", "target"), use("sample", "target")]


class Pod:
    """Runs the inspect stage on a bucket."""

    def __init__(self, directory: Path, uri: str, endpoint: str) -> None:
        self.directory, self.storage = directory, S3Storage(uri=uri, endpoint=endpoint)

    def _environ(self) -> dict[str, Any]:
        keys = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        return keys | {"WRPO_SCRATCH": str(self.directory / "scratch")}

    def inspect(self, name: str) -> tuple[int, TerminationMessage]:
        return inspect(self.directory, name, USES, storage=self.storage, **self._environ())

    def fetch(self, uses: list[dict[str, Any]]) -> tuple[int, TerminationMessage]:
        """Run the fetch stage in a pod of its own, whose disk is empty."""
        shutil.rmtree(self.directory / "scratch", ignore_errors=True)
        params = {"stage": "fetch", "model": {"name": "org/tiny"}}
        runtime = {"model_uses": uses}
        return run_stage(self.directory, params, ref=FETCH, runtime=runtime, storage=self.storage, **self._environ())


@pytest.fixture
def pod(tmp_path: Path, bucket: str, root: str, proxy: FaultProxy) -> Pod:
    return Pod(tmp_path, f"s3://{bucket}/{root}", proxy.endpoint)


def test_of_weights_in_a_bucket_only_the_headers_are_read(
    pod: Pod, s3: S3Server, bucket: str, root: str, proxy: FaultProxy, tiny_model_dir: Path, tmp_path: Path
) -> None:
    files = files_of(shard(tiny_model_dir, tmp_path / "model"))
    for name, content in (files | {"consolidated.safetensors": b"c", "onnx/config.json": b"{}"}).items():
        s3.client().put_object(Bucket=bucket, Key=f"{root}/models/tiny/{name}", Body=content)
    code, message = pod.inspect("storage://models/tiny")
    assert (code, message.error) == (0, None)
    assert message.facts is not None
    assert message.facts.weight_bytes == sum(
        len(content) - 8 - int.from_bytes(content[:8], "little")
        for name, content in files.items()
        if name.startswith("model-")
    )
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        end = 8 + int.from_bytes(files[name][:8], "little")
        assert proxy.ranges_asked(name) == ["bytes=0-7", f"bytes=8-{end - 1}"]
    assert proxy.ranges_asked(INDEX) == [f"bytes=0-{len(files[INDEX]) - 1}"]
    assert proxy.ranges_asked("consolidated") == proxy.ranges_asked("onnx") == []
    copies = [path for path in (tmp_path / "scratch").rglob("*.safetensors") if path.is_file()]
    assert copies == []


def test_a_model_that_was_fetched_into_a_bucket_is_checked_there_for_the_uses_of_another_experiment(
    pod: Pod, proxy: FaultProxy, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(tiny_model_dir)
    del files["chat_template.jinja"]
    with hub_server(Hub("org/tiny", files)) as hub:
        use_hub(monkeypatch, hub)
        code, message = pod.fetch([])
        assert (code, message.error, message.cached) == (0, None, False)
        requests = len(hub.asked)
        proxy.requests.clear()
        assert pod.fetch([])[1].facts == message.facts
        assert [request for request in proxy.requests if "/model/" in request.path] == []
        code, refused = pod.fetch(USES)
        assert len(hub.asked) == requests
    assert refused.error is not None
    assert (code, refused.error.code, refused.error.field) == (78, "MissingChatTemplate", "target.chatTemplate")
    end = 8 + int.from_bytes(files["model.safetensors"][:8], "little")
    assert proxy.ranges_asked("model.safetensors") == ["bytes=0-7", f"bytes=8-{end - 1}"]


def test_a_directory_that_the_bucket_does_not_have_is_named(pod: Pod) -> None:
    code, message = pod.inspect("storage://models/nobody")
    assert message.error is not None
    assert (code, message.error.code) == (78, "ModelNotFound")
    assert message.error.message == (
        f"target.model is 'storage://models/nobody': there is no directory {pod.storage.uri}/models/nobody"
    )
