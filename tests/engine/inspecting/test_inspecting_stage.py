"""The inspect stage: facts about a model, from wherever it is, without its weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from engine_support import NOON
from inspecting_support import REF, files_of, inspect, run_stage, shard, use
from safetensors.numpy import load_file
from support.hub_server import COMMIT, Hub, hub_server, use_hub

from wrpo_engine.artifacts import VolumeStore
from wrpo_engine.config import ArtifactRef
from wrpo_engine.contract.model_facts import ModelFacts

USES = [use("train", "target"), use("sample", "target"), use("sample")]
FETCH = ArtifactRef(stage="fetch/tiny", hash="00000000000000bb")


@pytest.fixture(scope="module")
def sharded(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard(tiny_model_dir, tmp_path_factory.mktemp("sharded") / "model")


@pytest.fixture
def hub(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    others = {"pytorch_model.bin": b"p" * 100, "consolidated.safetensors": b"c" * 100, "original/params.json": b"{}"}
    with hub_server(Hub("org/tiny", files_of(sharded) | others)) as running:
        use_hub(monkeypatch, running)
        yield running


@pytest.fixture
def counted(tiny_model_dir: Path) -> dict[str, Any]:
    """What the tiny model's tensors and config say."""
    weights = load_file(tiny_model_dir / "model.safetensors").values()
    config = json.loads((tiny_model_dir / "config.json").read_text())
    return {
        "model_type": "llama",
        "parameters": sum(each.size for each in weights),
        "weight_bytes": sum(each.nbytes for each in weights),
        "layers": 2,
        "hidden_size": 32,
        "key_value_heads": 2,
        "head_size": 8,
        "vocabulary": config["vocab_size"],
        "context": 512,
        "needs_code": False,
    }


def shown(facts: ModelFacts | None, names: dict[str, Any]) -> dict[str, Any]:
    assert facts is not None
    return {name: getattr(facts, name) for name in names}


def header_bytes(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def test_a_hub_model_is_inspected_without_its_weights(tmp_path: Path, hub: Hub, counted: dict[str, Any]) -> None:
    code, message = inspect(tmp_path, "org/tiny", USES)
    assert (code, message.outcome, message.cached) == (0, "Succeeded", False), message
    assert shown(message.facts, counted | {"revision": hub.commit}) == counted | {"revision": hub.commit}
    weights = {name: content for name, content in hub.files.items() if name.startswith("model-")}
    assert {name: hub.sent[name] for name in weights} == {name: header_bytes(weights[name]) for name in weights}
    assert set(hub.sent) - set(weights) == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    artifact = VolumeStore(tmp_path / "storage", lambda: NOON).open(REF)
    assert artifact is not None
    assert ModelFacts.model_validate_json(artifact.file("facts.json").read_bytes()) == message.facts
    assert artifact.manifest.details["model"] == {"name": "org/tiny", "revision": COMMIT}
    requests = len(hub.asked)
    code, again = inspect(tmp_path, "org/tiny", USES)
    assert (code, again.cached, again.facts) == (0, True, message.facts)
    assert len(hub.asked) == requests


def test_a_hub_without_ranges_gives_the_same_facts(tmp_path: Path, hub: Hub, counted: dict[str, Any]) -> None:
    hub.has_ranges = False
    assert shown(inspect(tmp_path, "org/tiny")[1].facts, counted) == counted


def test_a_mirror_that_lists_no_sizes_gives_the_same_facts(tmp_path: Path, hub: Hub, counted: dict[str, Any]) -> None:
    hub.has_sizes = False
    assert shown(inspect(tmp_path, "org/tiny", USES)[1].facts, counted) == counted


def test_models_in_directories_have_the_same_facts(
    tmp_path: Path, tiny_model_dir: Path, sharded: Path, counted: dict[str, Any]
) -> None:
    shutil.copytree(sharded, tmp_path / "storage/models/tiny")
    for number, name in enumerate([str(tiny_model_dir), str(sharded), "storage://models/tiny"]):
        ref = REF.model_copy(update={"hash": f"{number:016}"})
        params = {"stage": "inspect", "model": {"name": name}}
        code, message = run_stage(tmp_path, params, ref=ref)
        assert (code, shown(message.facts, counted)) == (0, counted), name


def test_a_reward_model_needs_no_chat_template(tmp_path: Path, tiny_reward_dir: Path) -> None:
    directory = shutil.copytree(tiny_reward_dir, tmp_path / "judge")
    (directory / "chat_template.jinja").unlink()
    code, message = inspect(tmp_path, str(directory), [use("score", "reward")])
    assert (code, message.error) == (0, None)


def test_facts_of_another_version_are_read_again(tmp_path: Path, hub: Hub, counted: dict[str, Any]) -> None:
    writer = VolumeStore(tmp_path / "storage", lambda: NOON).writer(REF, config={}, inputs={})
    writer.publish("facts.json", lambda path: path.write_text("{}") and None)
    writer.commit(files=["facts.json"], details={"facts": {"colour": "red"}})
    code, message = inspect(tmp_path, "org/tiny", USES)
    assert (code, message.cached, shown(message.facts, counted)) == (0, True, counted)


def fetch(directory: Path, uses: list[dict[str, Any]], **environ: Any) -> Any:
    params = {"stage": "fetch", "model": {"name": "org/tiny"}}
    return run_stage(directory, params, ref=FETCH, runtime={"model_uses": uses}, **environ)


def test_a_fetch_checks_before_it_downloads_and_gives_facts(tmp_path: Path, hub: Hub, counted: dict[str, Any]) -> None:
    del hub.files["chat_template.jinja"]
    code, message = fetch(tmp_path, USES)
    assert message.error is not None
    assert (code, message.error.code, message.error.field) == (78, "MissingChatTemplate", "target.chatTemplate")
    weights = [name for name in hub.files if name.startswith("model-")]
    assert all(hub.sent[name] == header_bytes(hub.files[name]) for name in weights)
    code, message = fetch(tmp_path, [use("sample", chat_template="{{ messages[0].content }}<|im_end|>")])
    assert message.error is None or message.error.code != "MissingChatTemplate"
    code, message = fetch(tmp_path, [])
    assert (code, shown(message.facts, counted)) == (0, counted)
    artifact = VolumeStore(tmp_path / "storage", lambda: NOON).open(FETCH)
    assert artifact is not None
    assert sorted(artifact.files("model/")) == sorted(
        f"model/{name}"
        for name in hub.files
        if name not in {"pytorch_model.bin", "consolidated.safetensors", "original/params.json"}
    )
    # Fetched by another experiment, which had no use that needs a template.
    code, message = fetch(tmp_path, USES)
    assert message.error is not None
    assert (code, message.error.code) == (78, "MissingChatTemplate")


def test_a_model_that_an_older_version_fetched_has_facts(
    tmp_path: Path, sharded: Path, counted: dict[str, Any]
) -> None:
    writer = VolumeStore(tmp_path / "storage", lambda: NOON).writer(FETCH, config={}, inputs={})
    files = {f"model/{name}": content for name, content in files_of(sharded).items()}
    for name, content in files.items():
        writer.publish(name, partial(Path.write_bytes, data=content))
    source = {"name": "org/tiny", "revision": COMMIT}
    writer.commit(files=files, details={"model": source, "fetched": source | {"requested": None}})
    code, message = fetch(tmp_path, USES, HF_HUB_OFFLINE="1")
    assert (code, message.cached, shown(message.facts, counted)) == (0, True, counted)


def test_a_model_whose_config_gives_no_size_is_fetched_without_facts(
    tmp_path: Path, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    config = json.loads(hub.files["config.json"])
    hub.files["config.json"] = json.dumps(config | {"hidden_size": "wide"}).encode()
    code, message = fetch(tmp_path, [])
    assert (code, message.facts) == (0, None)
    assert "hidden_size is 'wide'" in caplog.text
