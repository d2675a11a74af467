"""The real engine through the real operator: models, prompts and a spec in; a trained model and a report out.

Every other end-to-end test lets a stand-in take the engine's place. Here the stages compute: tiny models of random
weights (their answers mean nothing, the machinery is the same) are sampled, scored, fine-tuned and trained by gangs of
two pods with DeepSpeed, evaluated and reported. Shown are four things: the outcome is usable without this project; a
second apply does nothing; a run whose operator, control plane, sampling pod and training rank are killed leaves the
same bytes as one that is left alone; and what the engine says about bad input reaches the user word for word.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_real_support import (
    HELD_OUT,
    LOOK_S,
    PROMPTS,
    STAGES,
    Artifacts,
    claim_path,
    engine_process,
    fill_claim,
    kill_when,
    real_cluster,
    real_experiment,
    work_directory,
)
from e2e_support import EXTERNAL, JsonObject, Kube
from e2e_systems import (
    ITEMS,
    JUDGE,
    SYSTEMS,
    all_systems,
    fill_with_benchmark,
    stages_of_systems,
    with_served_judge,
)
from support.patience import LIMIT_S, LONG_S, wait_until

from wrpo_devcluster import lifecycle
from wrpo_engine.reporting.collect import place_of
from wrpo_operator.api.backends import BACKENDS

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(EXTERNAL, reason="a foreign cluster has no image of the engine, nor its claim's directory here"),
]

CLOCKED_FILES = frozenset({"metrics.jsonl", "README.md", "report.html"})
"""Not the same in two runs: tokens per second and seconds (in the training log, on the card under `metrics of the last
step`, in the report's charts), the experiment's name, and upstream digests, which cover the manifests' dates."""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    """A cluster of its own: here stages run as the chart ships them."""
    claims = ("quiet", "disturbed")
    with real_cluster(tmp_path_factory.mktemp("real"), claims) as cluster:
        for claim in claims:
            fill_claim(claim_path(cluster, claim))
        yield cluster


@pytest.fixture(scope="module")
def quiet(real: Kube) -> Artifacts:
    """The artifacts of a run that nothing disturbed."""
    real.apply(real_experiment("quiet", "quiet"))
    real.wait_phase("quiet", "Succeeded", LONG_S)
    return Artifacts.of(real, "quiet", "quiet")


def test_the_status_shows_progress_metrics_and_artifacts(real: Kube, quiet: Artifacts) -> None:
    status = real.status("quiet")
    assert status["progress"]["percent"] == 100
    assert {entry["name"] for entry in status["stages"]} == set(STAGES)
    for entry in status["stages"]:
        assert entry["attempts"][-1]["state"] == "Succeeded", entry["name"]
        assert own_failures(entry) == [], entry["name"]
    for stage in STAGES:
        entry = real.stage("quiet", stage)
        assert entry["progress"] == 100, stage
        assert entry["artifact"] == f"{stage}/{entry['hash']}"
        assert (quiet.directory(stage) / "manifest.json").is_file(), stage
    trained = real.stage("quiet", "train")["metrics"]
    assert float(trained["loss"]) == pytest.approx(quiet.manifest("train")["metrics"]["loss"], rel=1e-3)
    assert float(real.stage("quiet", "evaluate")["metrics"]["num_prompts"]) == HELD_OUT


def own_failures(stage: JsonObject) -> list[JsonObject]:
    """Return the attempts that failed for another reason than a pod that was taken away or a port that was in use."""
    *earlier, _ = stage["attempts"]
    return [attempt for attempt in earlier if attempt["state"] != "Disrupted" and attempt.get("exitCode") != 75]


def test_every_stage_did_its_work(quiet: Artifacts) -> None:
    prepared = quiet.manifest("prepare")["metrics"]
    training_prompts = prepared["prompts_sft"] + prepared["prompts_preference"]
    assert training_prompts == PROMPTS - HELD_OUT
    assert quiet.manifest("sample/a")["metrics"]["samples"] == 3 * training_prompts
    assert quiet.manifest("sample/target")["metrics"]["samples"] == 3 * prepared["prompts_preference"]
    steps = [row["step"] for row in quiet.training_log("train")]
    assert steps == list(range(1, len(steps) + 1))
    assert quiet.training_log("train")[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    trained, tuned, start = (
        next(path.glob("*.safetensors")).read_bytes()
        for path in (
            quiet.directory("train") / "model",
            quiet.directory("sft") / "model",
            quiet.root / "models" / "target",
        )
    )
    assert len({trained, tuned, start}) == 3


def test_every_metric_that_the_report_would_show_is_one_that_the_stage_gives(quiet: Artifacts) -> None:
    missing = {
        stage: set(place.key_metrics) - set(quiet.manifest(stage)["metrics"])
        for stage in STAGES
        if (place := place_of(stage)) is not None
    }
    assert {stage: names for stage, names in missing.items() if names} == {}


WITHOUT_THE_PROJECT = """
import sys
for name in ("wrpo_engine", "wrpo_operator", "wrpo_devcluster"):
    sys.modules[name] = None  # importing it fails from here on
model_path, triples_path, cache = sys.argv[1:]
import datasets
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(model_path, trust_remote_code=False)
tokenizer = AutoTokenizer.from_pretrained(model_path)
chat = [{"role": "user", "content": "What is 1 plus 1?"}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)
rows = datasets.load_dataset("json", data_files=triples_path, split="train", cache_dir=cache)
print("answer of", answer.shape[1] - inputs["input_ids"].shape[1], "tokens")
print("triples:", rows.num_rows, ",".join(sorted(rows.column_names)))
"""


def test_model_triples_and_report_need_nothing_of_this_project(quiet: Artifacts, tmp_path: Path) -> None:
    model, triples = quiet.directory("train") / "model", quiet.directory("curate-triples") / "triples.jsonl"
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_THE_PROJECT, str(model), str(triples), str(tmp_path / "cache")],
        cwd=tmp_path,
        env={"PATH": os.defpath, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"answer of [1-4] tokens", done.stdout), done.stdout
    assert f"triples: {quiet.table('curate-triples', 'triples.parquet').height} " in done.stdout
    files = [path.name for path in quiet.directory("report").iterdir() if path.name != "manifest.json"]
    assert files == ["report.html"]
    page = (quiet.directory("report") / "report.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert re.findall(r"""(?:src|href)=["'](?!#|data:)[^"']+""", page) == []


def test_applying_again_does_nothing(real: Kube, quiet: Artifacts) -> None:
    children = {child["metadata"]["uid"] for child in real.children("quiet")}
    before, manifests = real.status("quiet"), quiet.manifests()
    real.apply(real_experiment("quiet", "quiet"))
    real.kubectl("annotate", "wrpoexperiment", "quiet", "touched=yes", "--overwrite")
    real.wait_condition("Succeeded", "wrpoexperiment/quiet")
    assert real.status("quiet") == before
    assert {child["metadata"]["uid"] for child in real.children("quiet")} == children
    assert quiet.manifests() == manifests


def test_a_run_with_everything_killed_once_leaves_the_same_bytes(real: Kube, quiet: Artifacts) -> None:
    real.apply(real_experiment("disturbed", "disturbed"))
    restarts = real.restarts()
    kept_parts = kill_a_sampling_pod(real)
    kill_the_operator(real)
    kill_the_control_plane(real)
    kill_a_training_rank(real)
    real.wait_phase("disturbed", "Succeeded", LONG_S)
    # A killed pod of a Job is replaced within the attempt; a gang is made anew, which is the next attempt.
    stages = {entry["name"]: entry for entry in real.status("disturbed")["stages"]}
    train = stages.pop("train")
    assert {name: failed for name, entry in stages.items() if (failed := own_failures(entry))} == {}
    assert [attempt["state"] for attempt in train["attempts"]][-1:] == ["Succeeded"]
    assert len(train["attempts"]) > 1
    assert real.restarts() == restarts + 1
    # Neither the pod nor the gang began anew: parts are the killed pod's own files, training went on from a checkpoint.
    assert {part: part.stat().st_ino for part in kept_parts} == kept_parts
    assert re.search(r"continuing after step \d+ of \d+", rank_0_log(real))
    disturbed = Artifacts.of(real, "disturbed", "disturbed")
    assert disturbed.address == quiet.address
    assert disturbed.hashes(but=CLOCKED_FILES) == quiet.hashes(but=CLOCKED_FILES)
    assert set(disturbed.hashes()) == set(quiet.hashes())
    compared = set(quiet.hashes(but=CLOCKED_FILES))
    assert {"train: model/model.safetensors", "evaluate: evaluation.json", "curate-triples: triples.jsonl"} <= compared
    for stage in ("sft", "train"):
        assert disturbed.training_log(stage) == quiet.training_log(stage)
    assert {k: v for k, v in disturbed.metrics().items() if k != "report"} == {
        k: v for k, v in quiet.metrics().items() if k != "report"
    }


def stage_of(child: JsonObject) -> str:
    return str(child["metadata"]["labels"]["wrpo.ai/stage"])


AGAIN: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(sorted(BACKENDS.keys() - {"PyTorchJob"}), ("train",)),
    "TrainJob": ("sft", "train"),
}
"""Gangs that run again on each other backend."""


@pytest.mark.parametrize(("backend", "gangs"), AGAIN.items(), ids=AGAIN)
def test_every_backend_leaves_the_same_bytes_as_pytorchjobs(
    real: Kube, quiet: Artifacts, backend: str, gangs: tuple[str, ...]
) -> None:
    """Only what trains depends on the backend: the other stages find their artifacts at the new path."""
    name = f"on-{backend.lower()}"
    again = quiet.root / name
    for part in ("models", "prompts.jsonl"):
        (again / part).parent.mkdir(parents=True, exist_ok=True)
        (again / part).symlink_to(quiet.root / part)
    for stage in set(STAGES) - {*gangs, "evaluate", "report"}:
        shutil.copytree(quiet.directory(stage), again / quiet.address[stage])
    spec = real_experiment(name, "quiet")["spec"]
    spec["training"] |= {"backend": backend}
    spec["storage"]["volume"] |= {"path": name}
    spec |= {"evaluation": {**spec["evaluation"], "enabled": False}, "report": {"enabled": False}}
    real.apply(real_experiment(name, "quiet", **spec))
    status = real.wait_phase(name, "Succeeded", LONG_S)
    address = {entry["name"]: entry["artifact"] for entry in status["stages"]}
    assert address == {stage: quiet.address[stage] for stage in address}
    assert {entry["name"] for entry in status["stages"] if not entry.get("cached")} == set(gangs)
    made = Artifacts(again, {stage: address[stage] for stage in gangs})
    expected = {name: digest for name, digest in quiet.hashes(but=CLOCKED_FILES).items() if name in made.hashes()}
    assert made.hashes(but=CLOCKED_FILES) == expected
    assert "train: model/model.safetensors" in expected
    kinds = {stage_of(child): child["kind"] for child in real.children(name, backend)}
    assert {stage: kinds[stage] for stage in ("sft", "train")} == {"sft": backend, "train": backend}
    for stage in gangs:
        assert made.training_log(stage) == quiet.training_log(stage)
        assert len(real.list("pods", f"wrpo.ai/experiment={name},wrpo.ai/stage={stage}")) == 2


@pytest.fixture(scope="module")
def benchmark(quiet: Artifacts) -> None:
    fill_with_benchmark(quiet.root)


@pytest.mark.usefixtures("benchmark")
def test_every_form_of_system_is_evaluated_with_a_judge_that_the_stage_serves(real: Kube, quiet: Artifacts) -> None:
    """Prompts, sampling and training are the quiet run's: only the evaluation is computed."""
    real.apply(real_experiment("systems", "quiet", evaluation=all_systems()))
    entries = {entry["name"]: entry for entry in real.wait_phase("systems", "Succeeded", LONG_S)["stages"]}
    assert set(entries) == set(STAGES) | stages_of_systems()
    assert {name for name, entry in entries.items() if entry.get("cached")} == set(STAGES) - {"evaluate", "report"}
    assert {name: failed for name, entry in entries.items() if (failed := own_failures(entry))} == {}
    made = Artifacts(quiet.root, {name: entry["artifact"] for name, entry in entries.items()})
    # Selections, the mixture and the sources' own rows read the same answers.
    readers = ("rank/blender--own", "select/chance--own", "mixture/moa--own", "judge/a--own--pair")
    answers = {made.manifest(name)["inputs"]["answers/a--own"]["digest"] for name in readers}
    assert len(answers) == 1
    content = json.loads((made.directory("evaluate") / "benchmarks.json").read_text(encoding="utf-8"))
    assert [system["name"] for system in content["systems"]] == list(SYSTEMS)
    columns = {(column["benchmark"], column["judge"]): column for column in content["columns"]}
    assert set(columns) == {("held-out", "main"), ("own", JUDGE)}
    for column, items in ((columns["held-out", "main"], HELD_OUT), (columns["own", JUDGE], ITEMS)):
        assert {cell["system"]: cell["items"] for cell in column["cells"]} == dict.fromkeys(SYSTEMS, items)
    scores = {cell["system"]: cell["score"] for cell in columns["own", JUDGE]["cells"]}
    assert scores["target"] == 50  # against itself, without a request
    assert made.manifest("judge/target--own--pair")["metrics"]["requests"] == 0
    best = {cell["system"]: cell["score"] for cell in columns["held-out", "main"]["cells"]}
    assert best["best"] >= max(best["a"], best["b"], best["other"])
    page = (made.directory("report") / "report.html").read_text(encoding="utf-8")
    for words in (*SYSTEMS[3:], "own", JUDGE):
        assert words in page


@pytest.mark.usefixtures("benchmark")
def test_a_judge_is_a_model_that_vllm_serves_for_the_stages_time(real: Kube, quiet: Artifacts) -> None:
    """Without preference training one row has questions, so vLLM starts once: 40 s of processor time."""
    pytest.importorskip("vllm")
    spec = real_experiment("served", "quiet", evaluation=with_served_judge())["spec"]
    kept = ("precision", "zeroStage", "nodes", "gpusPerNode")
    spec["training"] = {"objective": "SFTOnly", **{name: spec["training"][name] for name in kept}}
    real.apply(real_experiment("served", "quiet", **spec))
    entries = {entry["name"]: entry for entry in real.wait_phase("served", "Succeeded", LONG_S)["stages"]}
    assert own_failures(entries["judge/sft--own--llm"]) == []
    made = Artifacts(quiet.root, {name: entry["artifact"] for name, entry in entries.items()})
    metrics = made.manifest("judge/sft--own--llm")["metrics"]
    assert 0 < metrics["requests"] == metrics["questions"] <= ITEMS
    assert metrics["failed"] == metrics["too_long"] == 0
    judge = json.loads((made.directory("judge/sft--own--llm") / "benchmark.json").read_text(encoding="utf-8"))["judge"]
    assert (judge["reported"], judge["protocol"]) == (["storage://models/judge"], "Logprobs")
    assert made.manifest("judge/target--own--llm")["metrics"]["requests"] == 0


def rank_0_log(real: Kube) -> str:
    child = real.stage("disturbed", "train")["attempts"][-1]["child"]
    return real.kubectl("logs", f"{child}-master-0", "--tail=-1")


def kill_a_sampling_pod(real: Kube) -> dict[Path, int]:
    """Return the parts that the killed pod left behind, with their inodes."""
    directory = work_directory(real, "disturbed", "disturbed", "sample/a")
    pid = wait_until("sample/a runs", lambda: engine_process(real, "disturbed", "sample/a"), every_s=LOOK_S)
    kill_when(
        pid,
        "sample/a has a part",
        lambda: any(directory.glob("parts/part-*.parquet")),
        too_late=(directory / "manifest.json").exists,
    )
    return {part: part.stat().st_ino for part in directory.glob("parts/part-*.parquet")}


def kill_the_operator(real: Kube) -> None:
    wait_for_process(real, "score/a")
    real.kill_operator()


def wait_for_process(real: Kube, stage: str, *, replica: str = "") -> None:
    """Wait until a stage of the disturbed run has a process, or is over: then a kill comes later than meant."""
    manifest = work_directory(real, "disturbed", "disturbed", stage) / "manifest.json"
    wait_until(
        f"{stage} runs",
        lambda: engine_process(real, "disturbed", stage, replica=replica) or manifest.exists(),
        every_s=LOOK_S,
    )


def kill_the_control_plane(real: Kube) -> None:
    assert real.state_dir is not None
    wait_for_process(real, "sft", replica="worker")
    state_dir = real.state_dir
    pid = lifecycle.status(state_dir).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until("the control plane is dead", lambda: not lifecycle.status(state_dir).is_running)
    lifecycle.up(state_dir)


def kill_a_training_rank(real: Kube) -> None:
    directory = work_directory(real, "disturbed", "disturbed", "train")
    pid = wait_until("train runs", lambda: engine_process(real, "disturbed", "train", replica="worker"), every_s=LOOK_S)
    kill_when(
        pid,
        "train has a checkpoint",
        lambda: any(directory.glob("checkpoints/step-*/checkpoint.json")),
        too_late=(directory / "manifest.json").exists,
    )


BAD_INPUT = {
    "a data set without the column": (
        {"prompts": {"dataset": "storage://prompts.jsonl", "column": "question", "evaluation": {"prompts": HELD_OUT}}},
        ("prepare", "ColumnNotFound", "spec.prompts.column", "question", "its columns: prompt"),
    ),
    "a model that does not exist": (
        # Without evaluation, whose answers of the target may find the fault first.
        {"target": {"model": "storage://models/nobody"}, "sft": {"enabled": False}, "evaluation": {"enabled": False}},
        ("sample/target", "ModelNotFound", "spec.target.model", "storage://models/nobody"),
    ),
}


@pytest.mark.parametrize(("spec", "words"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_fails_the_experiment_in_the_engines_words(
    real: Kube, spec: dict[str, object], words: tuple[str, ...]
) -> None:
    name = words[1].lower()
    real.apply(real_experiment(name, "quiet", **spec))
    status = real.wait_phase(name, "Failed")
    (failed,) = [entry for entry in status["conditions"] if entry["type"] == "Failed"]
    assert failed["status"] == "True"
    for word in words:
        assert word in failed["message"]
    attempts = real.stage(name, words[0])["attempts"]
    assert [(entry["state"], entry["failure"]) for entry in attempts] == [("Failed", "Config")]
