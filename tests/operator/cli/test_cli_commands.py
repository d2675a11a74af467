"""The `wrpo` command without a cluster."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console

from wrpo_engine.contract.model_facts import with_commit
from wrpo_operator.api.status import StageStatus
from wrpo_operator.cli import connect
from wrpo_operator.cli.main import COMMANDS, SUMMARIES, main
from wrpo_operator.cli.show import locate_artifact
from wrpo_operator.cli.view import Changes, Outcome, detail, duration, outcome_of, render, tree_lines
from wrpo_operator.cli.watch import GoneError, follow_lines
from wrpo_operator.runtime.kube import KubeError
from wrpo_operator.sizing.catalogue import known_facts

JsonObject = dict[str, Any]
SPEC = {
    "target": {"model": "org/target"},
    "sources": [{"name": "a", "model": "org/a"}],
    "prompts": {"dataset": "org/prompts"},
    "reward": {"model": "org/reward"},
    "storage": {"volume": {"claimName": "artifacts"}},
    "training": {"objective": "SFTOnly", "gpusPerNode": 0},
    "resources": {key: {"limits": {"nvidia.com/gpu": 0}} for key in ("sample", "score", "evaluate")},
    "evaluation": {"enabled": False},
    "report": {"enabled": False},
}
TIME = "2026-01-01T12:00:00Z"


def write(path: Path, *specs: JsonObject) -> str:
    documents = [
        {"apiVersion": "wrpo.ai/v1alpha1", "kind": "WRPOExperiment", "metadata": {"name": "fusion"}, "spec": spec}
        for spec in specs
    ]
    path.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
    return str(path)


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, list(arguments))
    return result.exit_code, result.output


def test_plan_shows_every_stage_with_its_hash_and_what_it_needs(tmp_path: Path) -> None:
    code, output = invoke("plan", "-f", write(tmp_path / "e.yaml", SPEC))
    assert code == 0
    *rows, last, pins = [line.split() for line in output.splitlines()[2:]]
    stages = [row[0] for row in rows if not row[0].startswith("inspect/")]
    assert stages == ["prepare", "sample/a", "score/a", "curate-sft", "sft"]
    assert all(len(row[3]) == 16 for row in rows)
    assert " ".join(last).startswith("No accelerators are given, so that placements and times are unknown.")
    assert "have no revision" in " ".join(pins)


def test_plan_shows_that_an_edited_learning_rate_changes_one_hash(tmp_path: Path) -> None:
    def hashes(spec: JsonObject) -> dict[str, str]:
        _, output = invoke("plan", "-f", write(tmp_path / "e.yaml", spec))
        return {line.split()[0]: line.split()[3] for line in output.splitlines()[2:-2]}

    before, after = hashes(SPEC), hashes({**SPEC, "sft": {"learningRate": 1e-5}})
    assert [name for name in before if before[name] != after[name]] == ["sft"]


def test_plan_prints_the_manifests_the_operator_would_apply(tmp_path: Path) -> None:
    code, output = invoke("plan", "-o", "yaml", "-f", write(tmp_path / "e.yaml", SPEC))
    assert code == 0
    kinds = [document["kind"] for document in yaml.safe_load_all(output)]
    assert set(kinds) == {"ConfigMap", "Job", "PyTorchJob"}
    assert kinds[:8] == ["ConfigMap", "Job"] * 4
    assert kinds[-2:] == ["ConfigMap", "PyTorchJob"]
    assert invoke("plan", "-o", "manifests", "-f", str(tmp_path / "e.yaml")) == (0, output)


BAD_FILES = {
    "missing": (None, "nothing.yaml cannot be read: No such file or directory."),
    "no YAML": ("{", "is not YAML"),
    "no experiment": ("kind: ConfigMap", "contains no WRPOExperiment (apiVersion wrpo.ai/v1alpha1)."),
    "not an object": ("- 1", "contains a document that is not a Kubernetes object. Remove it."),
}


@pytest.mark.parametrize(("text", "words"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_plan_says_what_is_wrong_with_a_file(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "nothing.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    code, output = invoke("plan", "-f", str(path))
    assert code == 1
    assert words in output


def test_plan_names_every_error_of_a_spec(tmp_path: Path) -> None:
    code, output = invoke("plan", "-f", write(tmp_path / "e.yaml", {**SPEC, "trainnig": {}, "target": {}}))
    assert code == 1
    assert "WRPOExperiment fusion cannot be accepted:" in output
    assert "spec.trainnig" in output
    assert "spec.target.model" in output


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"demo"}))
def test_every_command_explains_itself(name: str) -> None:
    code, output = invoke(name, "--help")
    assert code == 0
    assert len(output.splitlines()) > 5
    assert name in SUMMARIES


def test_a_cluster_that_cannot_be_reached_is_one_line_and_a_hint(tmp_path: Path) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "current-context": "c",
    }
    path = tmp_path / "config"
    path.write_text(json.dumps(config), encoding="utf-8")
    code, output = invoke("status", "fusion", "--kubeconfig", str(path))
    assert code == 1
    assert "the API server at http://127.0.0.1:9 cannot be reached" in output
    assert "wrpo dev status" in output


def test_the_namespace_is_the_contexts(tmp_path: Path) -> None:
    contexts = [
        {"name": "one", "context": {"namespace": "team-a"}},
        {"name": "two", "context": {}},
    ]
    path = tmp_path / "config"
    path.write_text(json.dumps({"current-context": "one", "contexts": contexts}), encoding="utf-8")
    assert connect.default_namespace(str(path), None) == "team-a"
    assert connect.default_namespace(str(path), "two") == "default"
    assert connect.default_namespace(str(tmp_path / "none"), None) == "default"


def stage(name: str, state: str, **rest: Any) -> JsonObject:
    return {"name": name, "state": state, "hash": "0123456789abcdef", **rest}


def experiment(phase: str, *stages: JsonObject, generation: int = 1, **status: Any) -> JsonObject:
    condition = {"status": "True", "observedGeneration": 1, "lastTransitionTime": TIME, "reason": "R"}
    conditions = [
        {**condition, "type": kind, "message": f"{kind} it is."} for kind in ("Succeeded", "Failed", "Accepted")
    ]
    return {
        "metadata": {"name": "fusion", "namespace": "ns", "uid": "e-1", "generation": generation},
        "spec": SPEC,
        "status": {"observedGeneration": 1, "phase": phase, "stages": stages, "conditions": conditions, **status},
    }


OUTCOMES = {
    "running": (experiment("Running"), None),
    "succeeded": (experiment("Succeeded"), Outcome(True, "Succeeded it is.")),
    "failed": (experiment("Failed"), Outcome(False, "Failed it is.")),
    "refused": (experiment("Invalid"), Outcome(False, "Accepted it is.")),
    "succeeded, then edited": (experiment("Succeeded", generation=2), None),
    "not seen yet": ({"metadata": {"generation": 1}}, None),
}


@pytest.mark.parametrize(("obj", "expected"), OUTCOMES.values(), ids=OUTCOMES.keys())
def test_how_an_experiment_ended(obj: JsonObject, expected: Outcome | None) -> None:
    assert outcome_of(obj) == expected


def test_durations_for_people() -> None:
    assert [duration(seconds) for seconds in (0.4, 59, 60, 185, 3600, 7620)] == [
        "0s",
        "59s",
        "1m00s",
        "3m05s",
        "1h00m",
        "2h07m",
    ]


def test_the_status_tree_shows_attempts_progress_and_blockers() -> None:
    failed = {
        "number": 1,
        "child": "fusion-a1",
        "state": "Failed",
        "exitCode": 1,
        "reason": "Boom",
        "message": "it broke",
    }
    running = {"number": 2, "child": "fusion-a2", "state": "Running"}
    obj = experiment(
        "Running",
        stage("prepare", "Succeeded", cached=True),
        stage("sample/a", "Running", progress=40, remainingSeconds=95, shards="1/4", attempts=[failed, running]),
        progress={"percent": 12, "remainingSeconds": 600},
        blockers=[{"object": "Pod/p", "reason": "Unschedulable", "message": "no GPU", "since": TIME}],
    )
    assert list(tree_lines(obj)) == [
        "ns/fusion  Running  12%, about 10m00s left",
        "  prepare                  Succeeded  artifact already existed",
        "  sample/a                 Running 40%  shards 1/4, attempt 2, about 1m35s left",
        "    attempt 1  Failed exit 1  fusion-a1  Boom: it broke",
        "    attempt 2  Running  fusion-a2",
        f"  blocked: Pod/p: Unschedulable: no GPU (since {TIME})",
    ]


def test_the_status_tree_shows_accelerators_and_if_asked_for_why_and_what_warns() -> None:
    chosen = {
        "accelerator": "H100",
        "resource": "nvidia.com/gpu",
        "perPod": 4,
        "pods": 2,
        "tensorParallelSize": 4,
        "step": 1,
        "arithmetic": "61.2 of 71.7 GiB",
        "alternatives": ["8 x L40S"],
    }
    warning = {"type": "Warned", "status": "True", "reason": "SuspiciousSpec", "message": "Too slow."}
    obj = experiment(
        "Running",
        stage("sample/a", "Running", placement=chosen),
        stage("score/a", "Pending", placement={"arithmetic": "on the CPU"}),
        conditions=[{**warning, "lastTransitionTime": TIME}],
    )
    words = "    runs on 2 pods of 4 x H100, tensor parallel 4, more room after OutOfMemory (1)"
    assert list(tree_lines(obj))[1:] == [
        "  sample/a                 Running",
        words,
        "  score/a                  Pending",
        "    runs on CPU",
        "  warning: Too slow.",
    ]
    wide = list(tree_lines(obj, wide=True))
    assert wide[2] == f"{words}: 61.2 of 71.7 GiB; or 8 x L40S"
    assert wide[4] == "    runs on CPU: on the CPU"


def test_the_wide_status_offers_the_commit_of_a_model_for_pinning() -> None:
    known = known_facts("Qwen/Qwen3-8B")
    assert known is not None
    read = with_commit(known.facts, "a" * 40)
    obj = experiment("Running", stage("inspect/qwen", "Succeeded", facts=read.model_dump(by_alias=True)))
    assert list(tree_lines(obj, wide=True))[-1] == f"    read from the hub; to pin the model: revision: {'a' * 40}"
    assert list(tree_lines(obj))[1:] == ["  inspect/qwen             Succeeded"]
    assert with_commit(known.facts, "main") == known.facts


def test_the_status_ends_with_the_headline_figures_of_the_final_model_by_benchmark_and_judge() -> None:
    metrics = {
        "score_alpaca_gpt": 41.5,
        "lc_alpaca_gpt": 45.25,
        "lc_alpaca_gpt_low": 43.1,
        "lc_alpaca_gpt_high": 47.3,
        "invalid_alpaca_gpt": 0.0125,
        "score_held-out_main": 0.5,
        "score_held-out_main_low": 0.25,
        "score_held-out_main_high": 0.75,
        "own_held-out_main": 1.0,
        "lc-minimal_own-2_gpt": 50.0,
        "win_rate_vs_target": 0.5,
        "num_prompts": 24.0,
    }
    lines = list(tree_lines(experiment("Succeeded", stage("evaluate", "Succeeded", metrics=metrics))))
    assert [line for line in lines if "result" in line] == [
        "  result: alpaca, judge gpt: LC 45.25 [43.1, 47.3]",
        "  result: held-out, judge main: score 0.5 [0.25, 0.75] (the judge is a reward that trained the model)",
        "  result: own-2, judge gpt: LC-minimal 50",
    ]
    wide = list(tree_lines(experiment("Succeeded", stage("evaluate", "Succeeded", metrics=metrics)), wide=True))
    assert "  result: alpaca, judge gpt: LC 45.25 [43.1, 47.3] (score 41.5; invalid verdicts 1.2%)" in wide
    running = tree_lines(experiment("Running", stage("evaluate", "Running", metrics=metrics)))
    assert not any("result" in line for line in running)


DETAILS = {
    "a new attempt that waits for its pod": ({"attempts": [{"number": 1, "child": "c", "state": "Pending"}]}, ""),
    "a retry that waits says why": (
        {
            "message": "Stage sft starts again at 12:00.",
            "attempts": [{"number": 1, "child": "c", "state": "Failed", "reason": "Oops", "message": "Oops: it broke"}],
        },
        "Stage sft starts again at 12:00., attempt 1 ended: Oops: it broke",
    ),
}


@pytest.mark.parametrize(("given", "expected"), DETAILS.values(), ids=DETAILS.keys())
def test_what_a_waiting_stage_says(given: JsonObject, expected: str) -> None:
    assert detail(StageStatus.model_validate(stage("sft", "Waiting", **given))) == expected


def test_only_what_changed_is_written_line_by_line() -> None:
    changes = Changes()
    first = experiment("Running", stage("prepare", "Running", progress=3), stage("sft", "Pending"))
    assert list(changes.lines(first)) == ["prepare: Running", "ns/fusion  Running"]
    assert list(changes.lines(first)) == []
    later = experiment("Running", stage("prepare", "Running", progress=57), stage("sft", "Pending"))
    assert list(changes.lines(later)) == ["prepare: Running 57%"]
    end = experiment("Succeeded", stage("prepare", "Succeeded", metrics={"rows": 9}), stage("sft", "Succeeded"))
    assert list(changes.lines(end)) == ["prepare: Succeeded (rows=9)", "sft: Succeeded", "ns/fusion  Succeeded"]


def test_a_divergence_is_seen_at_once_and_not_among_the_metrics_that_are_left_out() -> None:
    changes = Changes()
    metrics = {"alpha": 0.1, "eval_loss": 0.6, "loss": 0.5, "margin": 2.0, "reward_divergence": 0.0}
    healthy = experiment("Running", stage("train", "Running", progress=40, metrics=metrics))
    assert list(changes.lines(healthy)) == [
        "train: Running 40% (alpha=0.1, eval_loss=0.6, loss=0.5)",
        "ns/fusion  Running",
    ]
    ruined = experiment("Running", stage("train", "Running", progress=41, metrics=metrics | {"reward_divergence": 1.0}))
    told = "DIVERGES: chosen responses become improbable, alpha=0.1, eval_loss=0.6, loss=0.5"
    assert list(changes.lines(ruined)) == [f"train: Running 41% ({told})"]
    assert list(changes.lines(ruined)) == []
    assert list(tree_lines(ruined))[1] == f"  train                    Running 41%  {told}"


class Script:
    """A client that answers one thing after the other."""

    def __init__(self, *answers: JsonObject | KubeError) -> None:
        self.answers = list(answers)

    async def get(self, *_: Any) -> JsonObject:
        answer = self.answers.pop(0)
        if isinstance(answer, KubeError):
            raise answer
        return answer


def followed(*answers: JsonObject | KubeError) -> tuple[Outcome, list[str]]:
    lines: list[str] = []
    client: Any = Script(*answers)
    outcome = asyncio.run(follow_lines(client, "ns", "fusion", write=lambda line: lines.append(line[9:]), poll_s=0))
    return outcome, lines


def test_following_survives_a_restart_of_the_api_server() -> None:
    down = KubeError(0, "Unreachable", "refused")
    outcome, lines = followed(
        experiment("Running"), down, down, KubeError(503, "", "starting"), experiment("Succeeded")
    )
    assert outcome.succeeded
    assert lines == [
        "ns/fusion  Running",
        "the API server does not respond; waiting for it",
        "ns/fusion  Succeeded",
    ]


def test_following_ends_when_the_experiment_is_deleted() -> None:
    with pytest.raises(GoneError, match="experiment ns/fusion was deleted"):
        followed(experiment("Running"), KubeError(404, "NotFound", "gone"))


def test_following_something_that_is_not_there_is_an_error_at_once() -> None:
    with pytest.raises(KubeError, match="not there"):
        followed(KubeError(404, "NotFound", "not there"))


def test_where_an_artifact_lies() -> None:
    done = stage("report", "Succeeded", artifact="report/0123456789abcdef")
    elsewhere = connect.Target("k", None, "ns")
    own = connect.Target("k", None, "ns", embedded=True)
    obj = experiment("Succeeded", done)
    assert locate_artifact(obj, "report", elsewhere) == "claim artifacts: report/0123456789abcdef"
    path = locate_artifact(obj, "report", own)
    assert path is not None
    assert path.startswith(str(connect.STATE_DIR.resolve()))
    assert path.endswith("report/0123456789abcdef")
    s3 = {**obj, "spec": {"storage": {"s3": {"uri": "s3://bucket/prefix/"}}}}
    assert locate_artifact(s3, "report", elsewhere) == "s3://bucket/prefix/report/0123456789abcdef"
    assert locate_artifact(experiment("Running", stage("report", "Running")), "report", own) is None


def test_the_live_table_shows_bars_blockers_and_the_end() -> None:
    def shown(obj: JsonObject, note: str = "") -> str:
        console = Console(width=100, record=True, file=io.StringIO())
        console.print(render(obj, note=note))
        return console.export_text()

    blocker = {"object": "Pod/p", "reason": "Unschedulable", "message": "no GPU", "since": TIME}
    text = shown(
        experiment("Running", stage("prepare", "Succeeded"), stage("sft", "Running", progress=50), blockers=[blocker]),
        "the API server does not respond; waiting for it",
    )
    rows = [line.rstrip() for line in text.splitlines()]
    assert rows[0] == "ns/fusion  Running"
    assert rows[2].split() == ["✔", "prepare", "Succeeded"]
    assert rows[3].split() == ["▶", "sft", "Running", "50%", "━" * 10]
    assert rows[4:] == [
        "blocked Pod/p: Unschedulable: no GPU",
        "the API server does not respond; waiting for it",
    ]
    assert shown(experiment("Failed", stage("sft", "Failed"))).splitlines()[1].rstrip() == "Failed it is."


@pytest.mark.parametrize(
    "arguments",
    [
        ("-n", "team-b", "status", "fusion"),
        ("--namespace=team-b", "status", "fusion"),
        ("-nteam-b", "status", "fusion"),
        ("status", "fusion", "-n", "team-b"),
    ],
)
def test_options_of_the_connection_may_stand_before_the_command(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from wrpo_operator.cli import connect

    asked: list[tuple[Any, ...]] = []

    def choose(*given: Any) -> Any:
        asked.append(given)
        raise click.ClickException("enough")

    monkeypatch.setattr(connect, "choose", choose)
    code, output = invoke(*arguments)
    assert (code, output) == (1, "Error: enough\n")
    assert asked == [(None, None, "team-b")]


def test_an_option_that_is_no_connections_is_refused_before_a_command() -> None:
    code, output = invoke("-x", "status", "fusion")
    assert code == 2
    assert "No such option" in output
