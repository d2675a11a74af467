"""The fetch stage as a process, against a server that speaks the hub's endpoints."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_support import NOON, stage_config
from support.hub_server import COMMIT, Hub, HubFault, hub_server
from support.patience import LIMIT_S

from wrpo_engine.artifacts import VolumeStore
from wrpo_engine.config import ArtifactRef, ModelRef, RewardModel, TerminationMessage
from wrpo_engine.errors import ConfigError, Interrupted
from wrpo_engine.fetching.download import adopt_leftover
from wrpo_engine.hub.client import HubPatience, retry_after_s
from wrpo_engine.hub.models import resolve_model

REF = ArtifactRef(stage="fetch/org-tiny", hash="00000000000000aa")
VALUES = bytes(range(256)) * 4096
HEADER = json.dumps({"a": {"dtype": "U8", "shape": [len(VALUES)], "data_offsets": [0, len(VALUES)]}}).encode()
WEIGHTS = len(HEADER).to_bytes(8, "little") + HEADER + VALUES


@pytest.fixture
def hub() -> Iterator[Hub]:
    files = {
        "config.json": b'{"model_type": "llama"}',
        "model.safetensors": WEIGHTS,
        "pytorch_model.bin": b"p" * 100,
        "README.md": b"# tiny",
        "tokenizer.json": b"{}",
    }
    with hub_server(Hub("org/tiny", files)) as running:
        yield running


def is_part(asked: str) -> bool:
    """Whether a Range header names an end, as the check before the download does."""
    return re.fullmatch(r"bytes=\d+-\d+", asked) is not None


def downloads(hub: Hub, name: str) -> list[str]:
    """Return the Range headers of the requests that download a file."""
    return [asked for asked in hub.gets(name) if not is_part(asked)]


class Engine:
    """`wrpo-engine fetch` in a process of its own: the hub's address is read when its library is imported."""

    def __init__(self, directory: Path, hub: Hub, storage: Path | None = None) -> None:
        self.storage = storage or directory / "storage"
        for each in (directory, self.storage):
            each.mkdir(exist_ok=True)
        self.directory, self.hub = directory, hub

    def run(self, params: dict[str, Any] | None = None, **environ: str) -> tuple[int, TerminationMessage]:
        config = stage_config(
            {"stage": "fetch", "model": {"name": "org/tiny"}} | (params or {}), stage=REF.stage, hash_=REF.hash
        )
        path, outcome = self.directory / "stage.json", self.directory / "outcome"
        path.write_text(config.model_dump_json())
        outcome.unlink(missing_ok=True)
        env = {
            **os.environ,
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(self.directory / "hf"),
            "WRPO_VOLUME_ROOT": str(self.storage),
            "WRPO_TERMINATION_MESSAGE_PATH": str(outcome),
            "WRPO_HUB_PATIENCE_SECONDS": "10",
            **environ,
        }
        command = [sys.executable, "-m", "wrpo_engine", "fetch", "--config", str(path)]
        self.done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        return self.done.returncode, TerminationMessage.model_validate_json(outcome.read_bytes())

    def artifact(self) -> Any:
        return VolumeStore(self.storage, lambda: NOON).open(REF)


@pytest.fixture
def engine(tmp_path: Path, hub: Hub) -> Engine:
    return Engine(tmp_path, hub)


def test_a_model_is_fetched_once_pinned_and_with_checksums(engine: Engine, hub: Hub) -> None:
    code, message = engine.run()
    assert (code, message.outcome, message.cached) == (0, "Succeeded", False)
    artifact = engine.artifact()
    assert artifact.files("model/") == ["model/config.json", "model/model.safetensors", "model/tokenizer.json"]
    assert artifact.file("model/model.safetensors").read_bytes() == WEIGHTS
    assert artifact.manifest.details["fetched"] == {
        "name": "org/tiny",
        "requested": None,
        "revision": COMMIT,
    }
    entry = next(entry for entry in artifact.manifest.files if entry.name == "model/model.safetensors")
    assert entry.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert not (artifact.directory / "download").exists()
    asked = len(hub.asked)
    assert engine.run(HF_HUB_OFFLINE="1")[1].cached
    assert len(hub.asked) == asked


def test_limits_are_respected_and_a_broken_connection_goes_on(engine: Engine, hub: Hub) -> None:
    faults = {
        "model.safetensors": [HubFault(cut_body_to=300_000), HubFault(503), HubFault(429, {"Retry-After": "1"})],
        "tiny": [HubFault(429, {"Retry-After": "0"})],
    }

    def fault(path: str) -> HubFault | None:
        waiting = [] if is_part(hub.asked[-1][1]) else faults.get(path.rsplit("/", 1)[1], [])
        return waiting.pop(0) if waiting else None

    hub.fault = fault
    assert engine.run()[0] == 0
    assert engine.artifact().file("model/model.safetensors").read_bytes() == WEIGHTS
    assert downloads(hub, "model.safetensors") == ["", *["bytes=300000-"] * 3]
    assert "retrying in 1.0 s" in engine.done.stderr


def test_an_attempt_goes_on_with_what_the_last_one_left(engine: Engine, hub: Hub) -> None:
    broken = [HubFault(cut_body_to=500_000)]

    def fault(path: str) -> HubFault | None:
        if not path.endswith("model.safetensors") or is_part(hub.asked[-1][1]):
            return None
        return broken.pop() if broken else HubFault(503)

    hub.fault = fault
    code, message = engine.run(WRPO_HUB_PATIENCE_SECONDS="0.2")
    assert (code, message.error and message.error.code) == (75, "HubUnreachable")
    # The branch moves on; the model of this artifact does not.
    hub.fault = lambda _path: None
    hub.asked.clear()
    assert engine.run()[0] == 0
    assert [path for path, _ in hub.asked if "/api/" in path] == []
    assert downloads(hub, "model.safetensors") == ["bytes=500000-"]
    assert hub.gets("config.json") == []
    assert engine.artifact().file("model/model.safetensors").read_bytes() == WEIGHTS


def test_who_writes_on_into_its_own_download_does_not_change_what_was_published(engine: Engine, hub: Hub) -> None:
    theirs = engine.storage / REF.stage / REF.hash / "download/model.safetensors/other.part"
    theirs.parent.mkdir(parents=True)
    with theirs.open("ab") as straggler:
        straggler.write(WEIGHTS[:500_000])
        straggler.flush()
        assert engine.run()[0] == 0
        straggler.write(b"late")
    assert downloads(hub, "model.safetensors") == ["bytes=500000-"]
    assert engine.artifact().file("model/model.safetensors").read_bytes() == WEIGHTS
    assert not (engine.artifact().directory / "download").exists()


def test_two_that_fetch_at_once_both_end_with_the_one_model(tmp_path: Path, hub: Hub) -> None:
    hub.fault = lambda path: HubFault(cut_body_to=60_000) if path.endswith("model.safetensors") else None
    engines = [Engine(tmp_path / name, hub, tmp_path / "shared") for name in "ab"]
    with ThreadPoolExecutor() as threads:
        done = list(threads.map(lambda each: each.run(WRPO_HUB_PATIENCE_SECONDS="60"), engines))
    assert [code for code, _ in done] == [0, 0], [each.done.stderr for each in engines]
    artifact = engines[0].artifact()
    assert {name: len(artifact.file(name).read_bytes()) for name in artifact.files("model/")} == {
        f"model/{name}": len(hub.files[name]) for name in ("config.json", "model.safetensors", "tokenizer.json")
    }


def test_old_leftovers_are_removed_once_one_was_taken_over(tmp_path: Path) -> None:
    for name, content in {"old.part": b"12345", "young.part": b"123"}.items():
        (tmp_path / name).write_bytes(content)
    os.utime(tmp_path / "old.part", (1000, 1000))
    os.utime(tmp_path / "young.part", (9000, 9000))
    adopt_leftover(tmp_path / "own.part", now=10_000)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"own.part": b"12345", "young.part": b"123"}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_wrong_checksum_is_an_error_that_names_the_file(engine: Engine, hub: Hub, name: str) -> None:
    hub.served[name] = hub.files[name].replace(b"llama", b"other") if name == "config.json" else WEIGHTS[:-1] + b"x"
    code, message = engine.run()
    assert code == 65
    assert message.error is not None
    assert message.error.code == "DownloadDamaged"
    assert f"{name} of org/tiny at {COMMIT} does not match the hub's checksum" in message.error.message
    assert len(downloads(hub, name)) == 2
    assert engine.artifact() is None


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, str], str, str]] = {
    "offline": ({}, {"HF_HUB_OFFLINE": "1"}, "ModelNotFound", "HF_HUB_OFFLINE forbids downloading"),
    "an unknown model": ({"model": {"name": "org/nobody"}}, {}, "ModelNotFound", "there is no such model on the hub"),
    "an unknown revision": (
        {"model": {"name": "org/tiny", "revision": "v9"}},
        {},
        "ModelNotFound",
        "model.revision is 'v9': org/tiny has no such revision",
    ),
    "a local path": ({"model": {"name": "/models/x"}}, {}, "InvalidConfig", "only models of a hub are fetched"),
    "code without a revision": (
        {"model": {"name": "org/tiny", "trust_remote_code": True}},
        {},
        "InvalidConfig",
        "code from a hub runs only from a pinned revision",
    ),
}


@pytest.mark.parametrize(("params", "environ", "code", "words"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_cannot_be_fetched_is_refused(
    engine: Engine, params: dict[str, Any], environ: dict[str, str], code: str, words: str
) -> None:
    exit_code, message = engine.run(params, **environ)
    assert exit_code == 78
    assert message.error is not None
    assert message.error.code == code
    assert words in message.error.message


def test_a_model_without_safetensors_is_refused(engine: Engine, hub: Hub) -> None:
    del hub.files["model.safetensors"]
    code, message = engine.run()
    assert code == 78
    assert message.error is not None
    assert message.error.code == "ModelNotSafetensors"
    assert hub.gets("config.json") == []


def test_later_stages_use_what_was_fetched_wherever_its_name_stands(
    make_ctx: Any, commit_artifact: Any, tiny_model_dir: Path
) -> None:
    files = {f"model/{path.name}": path.read_bytes() for path in tiny_model_dir.iterdir()}
    source = {"name": "org/tiny", "requested": "v1", "revision": COMMIT}
    ref = commit_artifact("fetch/tiny", files, details={"fetched": source})
    params = {"stage": "sample", "model": {"name": "org/tiny", "revision": "v1"}, "source": "a"}
    ctx = make_ctx(params, {"fetch/tiny": ref}, stage="sample/a", environ={"HF_HUB_OFFLINE": "1"})
    for revision in ("v1", COMMIT):
        model = resolve_model(ModelRef(name="org/tiny", revision=revision), ctx)
        assert (model.identity, model.revision) == ("org/tiny", COMMIT)
        assert (model.path / "config.json").read_bytes() == (tiny_model_dir / "config.json").read_bytes()
    reward = resolve_model(RewardModel(name="org/tiny", revision="v1"), ctx)
    assert reward.revision == COMMIT
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE forbids downloading"):
        resolve_model(ModelRef(name="org/tiny", revision="v2"), ctx)


_DIRECT = """
import sys
from wrpo_engine.config import ModelRef
from wrpo_engine.hub.models import resolve_model
from types import SimpleNamespace
import os
stop = SimpleNamespace(raise_if_requested=lambda: None)
ctx = SimpleNamespace(environ=os.environ, stop=stop, resolve_path=lambda name, only=None: name)
ctx.config = SimpleNamespace(inputs={})
model = resolve_model(ModelRef(name="org/tiny"), ctx)
print(model.revision, sorted(path.name for path in model.path.iterdir()))
"""


def test_without_fetch_a_pod_downloads_for_itself_and_waits_when_told_to(hub: Hub, tmp_path: Path) -> None:
    limited = {"/api/models/org/tiny/revision/main": 1, "model.safetensors": 1}

    def fault(path: str) -> HubFault | None:
        for name, left in limited.items():
            if path.endswith(name) and left:
                limited[name] -= 1
                return HubFault(429, {"Retry-After": "0"})
        return None

    hub.fault = fault
    env = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", _DIRECT], env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == COMMIT
    assert "model.safetensors" in done.stdout
    assert "pytorch_model.bin" not in done.stdout


def answered(status: int, **headers: str) -> Any:
    error = Exception("answered")
    error.response = SimpleNamespace(status_code=status, headers=headers)  # type: ignore[attr-defined]
    return error


WAITS: dict[str, tuple[Any, float | None]] = {
    "seconds": (answered(429, **{"Retry-After": "17"}), 17.0),
    "a date": (answered(503, **{"Retry-After": "Thu, 01 Jan 2026 12:00:30 GMT"}), 30.0),
    "a date in the past": (answered(503, **{"Retry-After": "Thu, 01 Jan 2026 11:00:00 GMT"}), 0.0),
    "a word": (answered(503, **{"Retry-After": "soon"}), None),
    "nothing": (answered(503), None),
    "a limit": (answered(429, ratelimit='"api";r=0;t=41'), 41.0),
    "no answer": (ConnectionError("reset"), None),
}


@pytest.mark.parametrize(("error", "expected"), WAITS.values(), ids=WAITS.keys())
def test_how_long_the_hub_asks_to_wait(error: Exception, expected: float | None) -> None:
    assert retry_after_s(error, datetime(2026, 1, 1, 12, tzinfo=UTC)) == expected


def test_a_wait_for_the_hub_ends_when_the_stage_should_stop() -> None:
    slept: list[float] = []

    def poll() -> None:
        if len(slept) == 3:
            raise Interrupted

    def fail() -> None:
        raise ConnectionResetError("reset")

    patience = HubPatience(1e9, poll, slept.append, lambda: 0.0)
    with pytest.raises(Interrupted):
        patience.call("downloading", fail)


def patient_calls(fails: int) -> Callable[[], int]:
    left = [fails]

    def call() -> int:
        left[0] -= 1
        if left[0] >= 0:
            raise ConnectionResetError("reset")
        return json.loads("7")

    return call


def test_progress_begins_the_patience_anew() -> None:
    now = [0.0]
    progress = iter(range(1000))
    patience = HubPatience(3, sleep=lambda s: now.__setitem__(0, now[0] + s), monotonic=lambda: now[0])
    assert patience.call("downloading", patient_calls(20), progress=lambda: next(progress)) == 7
    with pytest.raises(ConnectionResetError):
        patience.call("downloading", patient_calls(20))
