"""`wrpo plan` with accelerators: placements, times, downloads and warnings, from facts of any source."""

from __future__ import annotations

import json
import re
import struct
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from support.hub_server import COMMIT, Hub, hub_server

from wrpo_engine.artifacts import VolumeStore
from wrpo_engine.config import ArtifactRef
from wrpo_engine.contract.merging import JointParams
from wrpo_operator.api.parsing import parse_spec
from wrpo_operator.cli.forecast import forecast as plans
from wrpo_operator.cli.forecast_inputs import Assumed
from wrpo_operator.cli.forecast_view import show
from wrpo_operator.cli.fusion_work import joint_seconds, joint_tokens
from wrpo_operator.cli.main import main
from wrpo_operator.cli.measured import Rate, Setting, measured_rates
from wrpo_operator.cli.model_sources import ModelSources, facts_of_directory
from wrpo_operator.cli.planning import inventory_of
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.sizing.catalogue import known_facts
from wrpo_operator.sizing.estimate import (
    exchanged_bytes,
    forward_seconds,
    generation_seconds,
    speed_of,
    step_seconds,
    training_seconds,
)
from wrpo_operator.sizing.requests import GenerationRequest

JsonObject = dict[str, Any]
ROOT = Path(__file__).resolve().parents[3]
PAPER = ROOT / "examples" / "paper-wrpo-dpo.yaml"
UNPINNED = "no revision, so that a later run may read other data"
SIZES = ("shards", "resources", "sampling")
CONFIG: JsonObject = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def automatic(tmp_path: Path) -> Path:
    """Return the published run without anything that the operator can choose."""
    document = yaml.safe_load(PAPER.read_text(encoding="utf-8"))
    spec = document["spec"]
    spec["sources"] = [{"name": source["name"], "model": source["model"]} for source in spec["sources"]]
    spec["sampling"] = {"onPromptTooLong": "Skip", "maxModelLength": 4096}
    spec["reward"] = {"model": spec["reward"]["model"]}
    spec["training"] = {"objective": "WRPO-DPO"}
    spec["modelCache"] = {"enabled": True}
    spec.pop("resources", None)
    path = tmp_path / "paper.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def plan(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["plan", "--no-hub", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def forecast(*arguments: str) -> JsonObject:
    found: JsonObject = json.loads(plan("-o", "json", *arguments))
    return found


def test_the_published_run_is_placed_on_four_nodes_of_eight(automatic: Path) -> None:
    found = forecast("-f", str(automatic), "--accelerators", "h100=4x8", "--prompts", "59876")
    placements = {stage["stage"]: stage["placement"] for stage in found["stages"] if stage["placement"]}
    assert (
        placements.items()
        >= {
            "sample/mistral-large": "8 x 4 h100 (TP 4)",
            "sample/gemma-2-27b": "16 x 2 h100 (TP 2)",
            "sample/qwen2-72b": "8 x 4 h100 (TP 4)",
            "sample/llama-3-70b": "8 x 4 h100 (TP 4)",
            "sample/gemma-2-9b": "32 x 1 h100",
            "sample/deepseek-v2": "4 x 8 h100 (TP 8)",
            "sample/deepseek-coder-v2": "4 x 8 h100 (TP 8)",
            "sample/yi-1-5-34b": "16 x 2 h100 (TP 2)",
            "sample/phi-3-medium": "32 x 1 h100",
            "sample/target": "32 x 1 h100",
            "sft": "1 x 8 h100",
            "train": "1 x 8 h100",
        }.items()
    )
    assert found["gpusAtOnce"] == 32
    assert [text for text in found["warnings"] if UNPINNED not in text] == []
    assert 1.5e12 < found["downloadBytes"] < 1.9e12


def test_hours_of_the_published_run_are_those_that_were_estimated_by_hand(automatic: Path) -> None:
    found = forecast("-f", str(automatic), "--accelerators", "h100=4x8", "--prompts", "59876")
    hours = {stage["stage"]: stage["gpuHours"] for stage in found["stages"]}
    by_hand = {
        "sample/mistral-large": 44,
        "sample/deepseek-v2": 46,
        "sample/qwen2-72b": 17,
        "sample/llama-3-70b": 17,
        "sample/gemma-2-27b": 9,
        "sample/gemma-2-9b": 5,
        "sample/phi-3-medium": 5,
        "sample/yi-1-5-34b": 9,
        "sample/target": 2,
        "sft": 0.6,
        "train": 3.8,
    }
    assert {name: hours[name] for name in by_hand} == {
        name: pytest.approx(value, rel=0.25) for name, value in by_hand.items()
    }
    scoring = sum(value for name, value in hours.items() if name.startswith("score/"))
    assert scoring == pytest.approx(23, rel=0.3)


def test_a_table_into_a_pipe_never_wraps(automatic: Path) -> None:
    lines = plan("-f", str(automatic), "--accelerators", "h100=4x8", "--prompts", "59876").splitlines()
    (row,) = [line for line in lines if line.startswith("sample/deepseek-coder-v2 ")]
    assert row.split()[:9] == ["sample/deepseek-coder-v2", "IndexedJob", "4", "x", "8", "h100", "(TP", "8)", "32"]
    wide = plan("-f", str(automatic), "-o", "wide", "--accelerators", "h100=4x8", "--prompts", "59876")
    assert "weights of 439.1 GiB on 8 x h100: 61.1 GiB of 71.4 GiB usable each (90%)" in wide
    (row,) = [line for line in wide.splitlines() if line.startswith("sample/deepseek-coder-v2 ")]
    assert "60Gi" in row.split()


def test_what_does_not_fit_is_a_warning_and_stands_at_its_stage(automatic: Path) -> None:
    found = forecast("-f", str(automatic), "--accelerators", "l4=1x1", "--prompts", "1000")
    stages = {stage["stage"]: stage["placement"] for stage in found["stages"]}
    assert stages["sample/qwen2-72b"].startswith("does not fit: needs 16 x l4 of 22.2 GiB in one pod")
    assert any("Stage sample/qwen2-72b does not fit: The model (qwen2" in text for text in found["warnings"])


def test_without_the_number_of_prompts_placements_are_known_and_times_are_not(automatic: Path) -> None:
    output = plan("-f", str(automatic), "--accelerators", "h100=4x8")
    assert "times unknown: set --prompts, or prompts.limit" in output
    assert "8 x 4 h100 (TP 4)" in output


def test_without_accelerators_only_what_the_spec_sizes_is_judged(automatic: Path) -> None:
    assert [text for text in forecast("-f", str(automatic))["warnings"] if UNPINNED not in text] == []
    document = yaml.safe_load(automatic.read_text(encoding="utf-8"))
    document["spec"]["training"]["gpusPerNode"] = 0
    automatic.write_text(yaml.safe_dump(document), encoding="utf-8")
    warnings = forecast("-f", str(automatic))["warnings"]
    assert [text.split(" (")[0] for text in warnings if UNPINNED not in text] == [
        f"Stage {stage} trains meta-llama/Meta-Llama-3-8B-Instruct" for stage in ("sft", "train")
    ]


def test_prices_come_from_a_profile(automatic: Path, tmp_path: Path) -> None:
    profile = tmp_path / "profiles.yaml"
    profile.write_text("- {name: H100, memoryGiB: 79.6, perNode: 8, nodes: 4, price: 2.5}\n", encoding="utf-8")
    found = forecast("-f", str(automatic), "--profile", str(profile), "--prompts", "59876")
    assert found["price"] == pytest.approx(2.5 * found["gpuHours"])
    profile.write_text("- {name: H100, perNode: 8}\n", encoding="utf-8")
    result = CliRunner().invoke(main, ["plan", "-f", str(automatic), "--profile", str(profile)])
    assert f"{profile} lacks [0].memoryGiB. Set it." in result.output


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("h100", "--accelerators has 'h100', which is not PRODUCT=NODESxEACH, e.g. h100=4x8."),
        ("h100=0x8", "--accelerators has 'h100=0x8', which is not PRODUCT=NODESxEACH, e.g. h100=4x8."),
        ("abacus=1x1", "--accelerators has the product 'abacus', whose memory is not known. Describe it in a file"),
    ],
)
def test_accelerators_that_cannot_be_parsed_are_refused(automatic: Path, given: str, message: str) -> None:
    result = CliRunner().invoke(main, ["plan", "-f", str(automatic), "--accelerators", given])
    assert result.exit_code == 1
    assert message in result.output


def test_accelerators_come_from_the_nodes_of_a_cluster(automatic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {"nvidia.com/gpu.product": "NVIDIA-H200", "nvidia.com/gpu.memory": "143771", "nvidia.com/gpu.count": "8"}
    node = {
        "metadata": {"name": "gpu-0", "labels": labels},
        "status": {
            "allocatable": {"nvidia.com/gpu": "8"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }

    async def listed(*_arguments: Any) -> tuple[list[JsonObject], list[JsonObject]]:
        return [node, {"metadata": {"name": "cpu-0"}, "status": {}}], [measured(automatic, "NVIDIA-H200", 4)]

    monkeypatch.setattr("wrpo_operator.cli.connect.with_client", listed)
    found = forecast("-f", str(automatic), "--cluster", "--prompts", "1000")
    placements = {stage["stage"]: stage["placement"] for stage in found["stages"]}
    assert placements["sample/deepseek-v2"] == "1 x 4 NVIDIA-H200 (TP 4)"
    stages = {stage["stage"]: stage for stage in found["stages"]}
    # 500 prompts less held out ones, 5 responses of 250 tokens each, at 1,000 tokens a second and accelerator.
    assert stages["sample/deepseek-v2"]["gpuHours"] == pytest.approx(500 * 5 * 250 / 1000 / 3600)
    assert stages["sample/deepseek-v2"]["measuredBy"] == "before"
    assert {name for name, stage in stages.items() if stage["measuredBy"]} == {"sample/deepseek-v2"}


def measured(path: Path, product: str, tensor_parallel: int, **changes: Any) -> JsonObject:
    """Return an experiment of the file whose sampling of one model has ended at a known rate."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    (node,) = [node for node in build_graph(parse_spec(document["spec"])) if str(node.id) == "sample/deepseek-v2"]
    stage = {
        "name": str(node.id),
        "state": "Succeeded",
        "hash": node.hash,
        "gpuSeconds": 400,
        "metrics": {"tokens": 400_000.0, "mean_tokens": 250.0},
        "placement": {"accelerator": product, "perPod": tensor_parallel, "tensorParallelSize": tensor_parallel},
        **changes,
    }
    return {**document, "metadata": {"name": "before"}, "status": {"stages": [stage]}}


@pytest.mark.parametrize(
    "changes",
    [
        {"cached": True},
        {"hash": "0" * 16},
        {"state": "Running"},
        {"gpuSeconds": 0},
        {"metrics": {}},
        {"placement": None},
        {"name": "sample/gemma-2-9b"},
    ],
)
def test_only_stages_that_ran_on_known_accelerators_are_measured(automatic: Path, changes: JsonObject) -> None:
    setting = Setting("deepseek-ai/DeepSeek-V2-Chat-0628", "h100", 8)
    assert measured_rates([measured(automatic, "h100", 8)])[setting] == Rate(1000.0, 250.0, "before")
    assert measured_rates([measured(automatic, "h100", 8, **changes), {"metadata": {"name": "x"}}]) == {}


def test_a_profile_that_is_not_utf8_is_refused_as_an_experiment_is(automatic: Path, tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    path.write_bytes(b"- {name: \xff}")
    result = CliRunner().invoke(main, ["plan", "-f", str(automatic), "--profile", str(path)])
    assert result.exit_code == 1
    assert f"{path} is not UTF-8" in result.output
    assert "Save it as UTF-8." in result.output


def test_only_one_source_of_accelerators_is_accepted(automatic: Path) -> None:
    result = CliRunner().invoke(main, ["plan", "-f", str(automatic), "--accelerators", "h100=1x1", "--cluster"])
    assert "--accelerators, --profile and --cluster exclude each other. Give one." in result.output


def test_finished_stages_cost_nothing(automatic: Path, tmp_path: Path) -> None:
    arguments = ("-f", str(automatic), "--accelerators", "h100=4x8", "--prompts", "59876")
    before = forecast(*arguments)
    root = tmp_path / "storage"
    root.mkdir()
    (done,) = [stage for stage in before["stages"] if stage["stage"] == "sample/mistral-large"]
    ref = ArtifactRef(stage="sample/mistral-large", hash=done["hash"])
    writer = VolumeStore(root, lambda: datetime(2026, 1, 1, tzinfo=UTC)).writer(ref, config={}, inputs={})
    writer.publish("parts/1", lambda path: path.write_bytes(b"x") and None)
    writer.commit(files=["parts/1"])
    after = forecast(*arguments, "--storage", str(root))
    (reused,) = [stage for stage in after["stages"] if stage["stage"] == "sample/mistral-large"]
    assert (reused["placement"], reused["gpus"], reused["gpuHours"]) == ("finished before: reused", 0, 0.0)
    assert after["gpuHours"] == pytest.approx(before["gpuHours"] - done["gpuHours"])
    assert after["hours"] < before["hours"]


FUSION_SYSTEMS: list[JsonObject] = [
    {"name": "fusechat", "fuse": {"sources": ["gemma-2-9b", "phi-3-medium"], "merge": {"method": "SCE"}}},
    {"name": "ties", "merge": {"method": "TIES", "models": ["sft", "one-source"]}},
    {"name": "one-source", "fuse": {"sources": ["gemma-2-9b"], "alignment": "DTW"}},
    {"name": "average", "fuse": {"sources": ["*"], "strategy": "AvgCE", "alignment": "DTW"}},
    {"name": "together", "joint": {"method": "EVA", "members": ["gemma-2-9b", "sft"]}},
    {"name": "searched", "merge": {"method": "TIES", "models": ["sft"], "search": {"budget": 9, "prompts": 50}}},
]


@pytest.mark.parametrize(
    ("method", "share"), [("EVA", 1.0), ("PackSim", 1.0), ("Ensemble", 1.0), ("PackTop1", 0.5), ("PackOpt", None)]
)
def test_members_of_a_joint_system_read_every_token_and_packopt_compares_mixtures(
    method: str, share: float | None
) -> None:
    known, speed = known_facts("google/gemma-2-9b-it"), speed_of("h100")
    assert known is not None
    assert speed is not None
    facts = known.facts
    given = {"stage": "joint", "method": method, "system": "s", "benchmark": "Custom", "max_tokens": 100}
    params = JointParams.model_validate(given | {"members": [{"name": "org/a"}, {"name": "org/b"}]})
    seconds = joint_seconds(params, [facts, facts], speed, answers=3)
    prompts = 2 * forward_seconds(facts, speed, tokens=180)
    tokens = 100 * 2 * step_seconds(facts, speed)
    if share is None:
        # 21 mixtures of two models for each of 180 + 50 positions on average.
        assert seconds == pytest.approx(3 * (prompts + tokens + 100 * 21 * 230 * facts.vocabulary / 1e8))
    else:
        assert seconds == pytest.approx(3 * (prompts + share * tokens))
    assert joint_tokens(params, answers=3) == 3 * 2 * 280


def test_a_token_of_a_large_model_waits_for_memory_and_of_a_small_one_for_python() -> None:
    known, speed = known_facts("google/gemma-2-9b-it"), speed_of("l4")
    assert known is not None
    assert speed is not None
    large = known.facts
    small = large.model_copy(update={"weight_bytes": 1, "parameters": 1})
    assert step_seconds(large, speed) == pytest.approx(large.weight_bytes / (0.3e12 * 0.55))
    assert step_seconds(small, speed) == pytest.approx(large.layers * 3e-4)


def test_stages_that_fuse_and_merge_have_tokens_times_and_space(automatic: Path) -> None:
    document = yaml.safe_load(automatic.read_text(encoding="utf-8"))
    document["spec"]["evaluation"] = {"systems": FUSION_SYSTEMS}
    automatic.write_text(yaml.safe_dump(document), encoding="utf-8")
    found = forecast("-f", str(automatic), "--accelerators", "h100=4x8", "--prompts", "59876")
    stages = {stage["stage"]: stage for stage in found["stages"]}
    target = known_facts("meta-llama/Meta-Llama-3-8B-Instruct")
    source, reward = known_facts("google/gemma-2-9b-it"), known_facts("RLHFlow/ArmoRM-Llama3-8B-v0.1")
    speed = speed_of("h100")
    assert target is not None
    assert source is not None
    assert reward is not None
    assert speed is not None
    rows = stages["sft"]["tokens"] // 680
    represented = stages["represent/gemma-2-9b"]
    assert represented["tokens"] == rows * 680
    assert represented["gpuHours"] == pytest.approx(forward_seconds(source.facts, speed, tokens=rows * 680) / 3600)
    # Of each token of 500 in a response 10 likeliest ones in 6 bytes, and 8 bytes more.
    assert represented["storedBytes"] == rows * 500 * 68 == stages["align/one-source--fuse"]["storedBytes"]
    spans, warped = stages["align/fusechat--fuse--gemma-2-9b"], stages["align/one-source--fuse"]
    assert spans["tokens"] == warped["tokens"] == rows * 2 * 500
    assert 0 < spans["hours"] < warped["hours"]
    # MinCE takes the distributions of one model of each row, AvgCE those of all.
    sources = len(document["spec"]["sources"])
    assert stages["align/average--fuse"]["hours"] == pytest.approx(sources * warped["hours"])
    plain, searched = stages["merge/fusechat"], stages["merge/searched"]
    assert plain["storedBytes"] == target.facts.weight_bytes
    assert plain["hours"] == pytest.approx(3 * target.facts.weight_bytes / 90e6 / 3600)
    assert (plain["tokens"], plain["gpus"]) == (None, 0)
    # Two generations of eight candidates, each with the answers to 50 prompts.
    assert searched["tokens"] == 16 * 50 * (180 + 256)
    once = 2 * target.facts.weight_bytes / 60e6
    scored = forward_seconds(reward.facts, speed, tokens=50 * (180 + 256))
    assert searched["hours"] * 3600 > 17 * once + 16 * scored
    together = next(stage for name, stage in stages.items() if name.startswith("joint/together"))
    items = document["spec"]["prompts"]["evaluation"]["prompts"]
    assert together["tokens"] == items * 2 * 680
    steps = step_seconds(source.facts, speed) + step_seconds(target.facts, speed)
    assert together["gpuHours"] * 3600 > items * 500 * steps
    assert stages["merge/ties"]["hours"] * 60e6 == pytest.approx(plain["hours"] * 90e6)
    wide = plan("-f", str(automatic), "-o", "wide", "--accelerators", "h100=4x8", "--prompts", "59876")
    assert "Stored" in wide.splitlines()[1]


def write_model(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    header = json.dumps({"__metadata__": {}, "w": {"dtype": "BF16", "shape": [300, 512], "data_offsets": [0, 307200]}})
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode())
    return path


def test_a_directory_is_read_by_its_headers(tmp_path: Path) -> None:
    found = facts_of_directory(write_model(tmp_path / "model"))
    assert (found.parameters, found.weight_bytes, found.layers) == (153600, 307200, 2)
    sources = ModelSources(use_hub=False)
    assert sources.facts(str(tmp_path / "model")) == found
    assert ModelSources(use_hub=False, storage=tmp_path).facts("storage://model") == found
    assert sources.faults == []


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"\xff" * 16)
    sources = ModelSources(use_hub=False)
    assert sources.facts(str(model)) is None
    assert sources.facts("org/unlisted") is None
    assert sources.facts("storage://models/a") is None
    assert [fault.split(":")[0] for fault in sources.faults] == [
        f"{model} cannot be read",
        "Nothing is known about the size of org/unlisted",
        "storage",
    ]


@pytest.mark.parametrize("header", ['{"w": 1}', '{"w": {"shape": [2]}}', '{"w": {"shape": 2, "data_offsets": [0, 1]}}'])
def test_a_damaged_header_is_named(tmp_path: Path, header: str) -> None:
    model = write_model(tmp_path / "model")
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode())
    sources = ModelSources(use_hub=False)
    assert sources.facts(str(model)) is None
    assert f"{model / 'model.safetensors'} has a damaged header: " in sources.faults[0]


DAMAGED = {
    "an empty config": ("config.json", b"", "is damaged: Expecting value"),
    "a config of bytes": ("config.json", b"\xff\xfe{", "is damaged: 'utf"),
    "a config that is a list": (
        "config.json",
        b"[]",
        "is not a JSON object. Name a model in the format of Transformers.",
    ),
    "a cut header": ("model.safetensors", b"\x40\0\0\0\0\0\0\0{", "is damaged: Expecting property name"),
    "a header that is a list": ("model.safetensors", b"\2\0\0\0\0\0\0\0[]", "is not a JSON object."),
}


@pytest.mark.parametrize(("name", "content", "rule"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_of_a_model_is_named(tmp_path: Path, name: str, content: bytes, rule: str) -> None:
    model = write_model(tmp_path / "model")
    (model / name).write_bytes(content)
    sources = ModelSources(use_hub=False)
    assert sources.facts(str(model)) is None
    assert len(sources.faults) == 1
    assert sources.faults[0].startswith(f"{model} cannot be read: ")
    assert f"{model / name} {rule}" in sources.faults[0]


@pytest.mark.parametrize("stated", ["1e400", "-1", '"13 GB"', "true", "NaN"])
def test_an_index_that_states_no_size_is_named(monkeypatch: pytest.MonkeyPatch, stated: str) -> None:
    index = f'{{"metadata": {{"total_size": {stated}}}}}'.encode()
    files = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors.index.json": index}
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with hub_server(Hub(repo="org/model", files=files)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        sources = ModelSources()
        assert sources.facts("org/model") is None
    (fault,) = sources.faults
    assert fault.startswith("org/model cannot be read: metadata.total_size of model.safetensors.index.json is ")
    assert fault.endswith("it must be a number of bytes. Upload the index that belongs to the weights.")


def test_an_unreachable_hub_is_asked_once_and_the_catalogue_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    sources = ModelSources()
    known = known_facts("Qwen/Qwen3-8B")
    assert known is not None
    assert sources.facts("Qwen/Qwen3-8B") == known.facts
    assert sources.facts("Qwen/Qwen3-14B") is not None
    assert len(sources.faults) == 1
    assert sources.faults[0].startswith("The hub cannot be reached (")
    assert not sources.use_hub


def test_the_hub_gives_config_and_index_and_never_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    index = {"metadata": {"total_size": 307200}, "weight_map": {}}
    files = {"config.json": CONFIG, "model.safetensors.index.json": index}
    contents = {name: json.dumps(content).encode() for name, content in files.items()} | {
        "model.safetensors": b"weights"
    }
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with hub_server(Hub(repo="org/model", files=contents)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        sources = ModelSources()
        found = sources.facts("org/model", COMMIT)
        assert sources.facts("org/missing") is None
    assert found is not None
    assert (found.weight_bytes, found.layers, found.revision) == (307200, 2, COMMIT)
    assert hub.gets("config.json")
    assert hub.gets("model.safetensors") == []
    assert sources.faults == ["Nothing is known about the size of org/missing: it is not in the catalogue."]


def test_models_without_a_revision_are_named_once_and_their_commits_offered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    warned = [line for line in plan("-f", str(PAPER)).splitlines() if UNPINNED in line]
    assert len(warned) == 1
    assert warned[0].startswith(
        "Warning: deepseek-ai/DeepSeek-Coder-V2-Instruct-0724 and deepseek-ai/DeepSeek-V2-Chat-0628 have no revision"
    )
    unpinned = tmp_path / "unpinned.yaml"
    unpinned.write_text(re.sub(r"^ *revision: .*\n", "", PAPER.read_text(), flags=re.MULTILINE), encoding="utf-8")
    warned = [line for line in plan("-f", str(unpinned)).splitlines() if UNPINNED in line]
    assert warned[0].startswith(
        "Warning: 01-ai/Yi-1.5-34B-Chat, Qwen/Qwen2-72B-Instruct, RLHFlow/ArmoRM-Llama3-8B-v0.1 and 9 more have no"
    )
    assert " Known commits: 01-ai/Yi-1.5-34B-Chat fa4ffba162f20948bf77c2a30eca952bf0812b7f; Qwen/" in warned[0]
    assert "DeepSeek" not in warned[0]
    spec: JsonObject = {
        "target": {"model": "org/model"},
        "sources": [{"name": "one", "model": "org/model", "revision": COMMIT}],
        "prompts": {"dataset": "org/prompts", "revision": "v1", "column": "text", "limit": 600},
        "reward": {"function": "rewards:score"},
        "accelerator": {"memoryGiB": 80},
        "storage": {"volume": {"claimName": "data"}},
    }
    path = tmp_path / "own.yaml"
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with hub_server(Hub(repo="org/model", files={"config.json": json.dumps(CONFIG).encode()})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        shown = []
        for target in ({"model": "org/model"}, {"model": "org/model", "revision": COMMIT}):
            document = {"apiVersion": "wrpo.ai/v1alpha1", "kind": "WRPOExperiment", "metadata": {"name": "own"}}
            path.write_text(yaml.safe_dump({**document, "spec": {**spec, "target": target}}), encoding="utf-8")
            result = CliRunner().invoke(main, ["plan", "-f", str(path)])
            assert result.exit_code == 0, result.output
            shown.append([line for line in result.output.splitlines() if UNPINNED in line])
    assert len(shown[0]) == 1
    assert shown[0][0].startswith("Warning: org/model has no revision")
    assert shown[0][0].endswith(f"Known commits: org/model {COMMIT}.")
    assert shown[1] == []


def test_on_a_terminal_tables_are_not_folded_and_sentences_break_between_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = parse_spec(yaml.safe_load(PAPER.read_text(encoding="utf-8"))["spec"])
    inventory = inventory_of("h100=4x8", None)
    result = plans(spec, inventory, Assumed(look_up=ModelSources(use_hub=False).facts, prompts=60_000))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show("paper", result, inventory, [], is_wide=False)
    _, header, *lines = (line.rstrip() for line in capsys.readouterr().out.splitlines())
    plain = re.compile(r"\x1b\[[0-9;]*m")
    titles = ["Stage", "Becomes", "Placement", "GPUs", "Tokens", "GPU-h", "Time", "Download", "Hash"]
    assert plain.sub("", header).split() == titles, "empty columns are left out"
    rows, sentences = lines[: len(result.lines)], lines[len(result.lines) :]
    assert all(row.endswith(line.hash) for row, line in zip(rows, result.lines, strict=True))
    assert max(map(len, rows)) <= 120
    assert max(map(len, sentences)) <= 100
    assert " ".join(sentences).startswith("Total: 32 GPUs at once, 216")
    (answers,) = (row for row in rows if row.startswith("answer/trained"))
    assert answers.split()[-3:-1] == ["<0.1", "<1m"]


def test_without_accelerators_the_shards_of_stages_that_will_be_sized_are_not_stated(automatic: Path) -> None:
    rows = {line.split()[0]: line.split()[2] for line in plan("-f", str(automatic)).splitlines()[2:-2]}
    assert (rows["prepare"], rows["sample/qwen2-72b"], rows["train"]) == ("1", "auto", "auto")


def test_a_gang_of_several_nodes_states_the_network_that_it_needs(automatic: Path) -> None:
    document = yaml.safe_load(automatic.read_text(encoding="utf-8"))
    spec = document["spec"]
    spec["scheduling"] = {"gang": "BestEffort"}

    def networks(target: str, **training: object) -> list[str]:
        spec["target"], spec["training"] = {"model": target}, {"objective": "DPO", **training}
        automatic.write_text(yaml.safe_dump(document), encoding="utf-8")
        output = plan("-f", str(automatic), "--accelerators", "h100=8x8", "--prompts", "60000")
        return [line for line in output.splitlines() if line.startswith("Network: ")]

    (found,) = networks("meta-llama/Meta-Llama-3-70B-Instruct")
    # 6 bytes of each parameter, and 4 passes over 8192 tokens at a third of the peak.
    exchanged = 6 * 70_553_706_496
    gigabits = exchanged * 8 / 1e9 / (4 * 2 * 70_553_706_496 * 8192 / (989e12 * 0.33))
    assert found == (
        f"Network: for each micro-batch of sft and train, a node exchanges {exchanged / 1e9:.1f} GB with the others. "
        f"With less than about {gigabits:.0f} Gbit/s for a node, this takes longer than computing; the times do not "
        "count it."
    )
    assert networks("meta-llama/Meta-Llama-3-8B-Instruct") == [], "one node"
    (two,) = networks("meta-llama/Meta-Llama-3-8B-Instruct", nodes=2, zeroStage=2)
    assert "a node exchanges 16.1 GB" in two
    facts = known_facts("meta-llama/Meta-Llama-3-8B-Instruct")
    assert facts is not None
    assert [exchanged_bytes(facts.facts, width=2, zero_stage=stage) // 10**9 for stage in range(4)] == [0, 0, 16, 48]


def test_speeds_are_found_by_the_names_of_labels_and_profiles_and_state_their_source() -> None:
    names = ["NVIDIA-H100-80GB-HBM3", "h100", "NVIDIA-H200", "NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-SXM4-40GB"]
    names += [
        "NVIDIA-L40S",
        "NVIDIA-L4",
        "NVIDIA-GeForce-RTX-4090",
        "AMD_Instinct_MI300X_OAM",
        "NVIDIA-B200",
        "A800-80GB",
    ]
    found = [speed_of(name) for name in names]
    assert [speed.bandwidth / 1e12 for speed in found if speed] == [
        3.35, 3.35, 4.8, 2.04, 1.56, 0.864, 0.3, 1.01, 5.3, 8.0, 2.04
    ]  # fmt: skip
    assert all(speed is not None and speed.source for speed in found)
    assert speed_of("abacus") is None


def test_more_room_and_more_accelerators_never_take_longer() -> None:
    known, speed = known_facts("Qwen/Qwen2-72B-Instruct"), speed_of("h100")
    assert known is not None
    assert speed is not None

    def seconds(accelerators: int, room: int, quantization: str | None = None, cache_dtype: str = "auto") -> float:
        request = GenerationRequest(facts=known.facts, quantization=quantization, cache_dtype=cache_dtype)
        return generation_seconds(request, speed, responses=5000, accelerators=accelerators, room=room)

    assert seconds(4, 100_000) > seconds(4, 200_000) > seconds(8, 200_000)
    # With few sequences, time is that of reading weights and cache.
    assert seconds(4, 10_000, "fp8") < 0.55 * seconds(4, 10_000)
    assert seconds(4, 100_000, cache_dtype="fp8") < seconds(4, 100_000)
    plain = training_seconds(known.facts, speed, tokens=10, checkpointing=False, references=False)
    assert plain > 3 * forward_seconds(known.facts, speed, tokens=10)
    recomputed = training_seconds(known.facts, speed, tokens=10, checkpointing=True, references=True)
    assert recomputed == pytest.approx(plain * 5 / 3)


def test_requests_to_judges_are_counted_before_anything_runs(automatic: Path) -> None:
    document = yaml.safe_load(automatic.read_text(encoding="utf-8"))
    kinds = {"alpaca": "AlpacaEval2", "arena": "ArenaHard", "mt": "MTBench"}
    document["spec"]["evaluation"] = {
        "benchmarks": [{"name": name, "kind": kind} for name, kind in kinds.items()],
        "judges": [{"name": "gpt", "endpoint": "https://judges.example.org/v1", "model": "gpt"}],
    }
    automatic.write_text(yaml.safe_dump(document), encoding="utf-8")
    found = forecast("-f", str(automatic))
    requests = {stage["stage"]: stage["requests"] for stage in found["stages"] if stage["requests"]}
    assert requests == {
        f"judge/{model}--{name}--gpt": count
        for model in ("target", "sft", "trained")
        for name, count in (("alpaca", 805), ("arena", 1000), ("mt", 160))
    }
    # Each request has a prompt of 180 tokens, and answers and a reply of 500; AlpacaEval 2 asks for one token.
    tokens = 3 * (805 * (180 + 1000 + 1) + 1000 * (180 + 1500) + 160 * (180 + 1000))
    assert sum(stage["tokens"] for stage in found["stages"] if stage["requests"]) == tokens
    assert "Judges: 5895 requests in 9 stages, about 8.46M tokens, without retries." in plan("-f", str(automatic))
