"""Whole experiments through the real kubectl: chart -> operator -> children -> status."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator

import pytest
from e2e_support import EXTERNAL, NAMESPACE, SYSTEM, Kube, experiment, wait_until

from wrpo_operator.cli.install import find_tool

pytestmark = pytest.mark.cluster


def test_an_experiment_runs_to_success_and_kubectl_shows_it(kube: Kube) -> None:
    sources = [{"name": "a", "model": "org/a"}, {"name": "b", "model": "org/b"}]
    whole = experiment("whole", short=False, sources=sources, training={"nodes": 2}, env={"STANDIN_SLOW": "sample/a:2"})
    with _watched(kube) as seen:
        assert "created" in kube.apply(whole)
        kube.kubectl("wait", "--for=condition=Succeeded", "wrpoexperiment/whole", "--timeout=110s")
    status = kube.status("whole")
    assert (status["phase"], status["progress"]["percent"]) == ("Succeeded", 100)
    assert {entry["name"] for entry in status["stages"]} == {
        *("prepare", "sample/a", "sample/b", "sample/target", "score/a", "score/b", "score/target"),
        *("curate-sft", "sft", "curate-triples", "train", "evaluate", "report"),
    }
    assert all(entry["state"] == "Succeeded" and len(entry["attempts"]) == 1 for entry in status["stages"])
    assert kube.stage("whole", "train")["metrics"] == {"loss": 0.25, "rows": 7}
    kinds = sorted((child["kind"], child["metadata"]["labels"]["wrpo.ai/stage"]) for child in kube.children("whole"))
    assert [stage for kind, stage in kinds if kind == "PyTorchJob"] == ["sft", "train"]
    assert len(kinds) == 13
    assert any("Running" in line for line in seen)
    assert any("Succeeded" in line for line in seen)
    described = kube.kubectl("describe", "wrpoexperiment", "whole")
    assert "StageStarted" in described
    assert "All 13 stages have succeeded." in described
    pod = kube.list("pods", "wrpo.ai/experiment=whole,wrpo.ai/stage=sample.a")[0]["metadata"]["name"]
    assert "stage sample/a" in kube.kubectl("logs", pod)
    kube.apply(whole)
    assert kube.experiment("whole")["metadata"]["generation"] == 1
    assert kube.status("whole") == status


@contextlib.contextmanager
def _watched(kube: Kube) -> Iterator[list[str]]:
    """Collect what `kubectl get -w` prints."""
    command = [find_tool("kubectl"), "--kubeconfig", str(kube.kubeconfig), "-n", NAMESPACE, "get", "wrpo", "-w"]
    seen: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=seen.extend, args=(process.stdout,))
        reader.start()
        try:
            yield seen
        finally:
            process.kill()
            reader.join()


def test_progress_posts_reach_the_status_while_a_stage_runs(kube: Kube) -> None:
    kube.apply(experiment("progress", env={"STANDIN_SLOW": "sft:8"}))
    kube.wait_stage("progress", "sft", "Running")
    entry = wait_until("progress shows", lambda: (e := kube.stage("progress", "sft")).get("progress") and e, 15)
    assert (entry["progress"], entry["state"]) == (40, "Running")
    assert entry["metrics"] == {"loss": 0.5}
    assert 0 < kube.status("progress")["progress"]["percent"] < 100
    kube.wait_phase("progress", "Succeeded")


def test_a_failed_stage_ends_the_experiment_with_the_engines_own_words(kube: Kube) -> None:
    kube.apply(experiment("fails", env={"STANDIN_FAIL": "sft"}))
    status = kube.wait_phase("fails", "Failed")
    (failed,) = [entry for entry in status["conditions"] if entry["type"] == "Failed"]
    assert failed["status"] == "True"
    for words in (
        "sft",
        "ModelNotFound",
        "spec.target.model",
        "there is no model named nobody/nothing.",
        "Check the spelling.",
    ):
        assert words in failed["message"]
    attempts = kube.stage("fails", "sft")["attempts"]
    assert [(entry["state"], entry["exitCode"], entry["failure"]) for entry in attempts] == [("Failed", 65, "Config")]
    kube.kubectl("wait", "--for=condition=Failed", "wrpoexperiment/fails", "--timeout=5s")


def test_a_crash_is_tried_again(kube: Kube) -> None:
    kube.apply(experiment("crashes", env={"STANDIN_CRASH": "sft"}))
    kube.wait_phase("crashes", "Succeeded")
    attempts = kube.stage("crashes", "sft")["attempts"]
    assert [(entry["number"], entry["state"]) for entry in attempts] == [(1, "Failed"), (2, "Succeeded")]


def test_what_the_schema_forbids_is_refused_by_kubectl_apply(kube: Kube) -> None:
    twice = [{"name": "a", "model": "org/a"}, {"name": "a", "model": "org/b"}]
    refused = {
        "twice": experiment("twice", sources=twice),
        "alpha": experiment("alpha", training={"alpha": {"max": 1.5}}),
        "storage": experiment("no-storage", storage={}),
        "unknown": experiment("unknown", trainnig={}),
    }
    words = {"twice": "Duplicate", "alpha": "1.5", "storage": "storage", "unknown": "trainnig"}
    for case, obj in refused.items():
        answer = kube.kubectl("apply", "-f", "-", stdin=json.dumps(obj), check=False)
        assert words[case] in answer, answer
        assert "created" not in answer


def test_a_spec_that_only_the_operator_can_judge_is_answered_in_the_status(kube: Kube) -> None:
    kube.apply(experiment("invalid", podTemplate={"spec": {"serviceAccountName": "admin"}}))
    status = kube.wait_phase("invalid", "Invalid")
    (accepted,) = [entry for entry in status["conditions"] if entry["type"] == "Accepted"]
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidSpec")
    assert "serviceAccountName" in accepted["message"]
    assert kube.children("invalid") == []


def test_suspend_stops_everything_and_resume_goes_on(kube: Kube) -> None:
    kube.apply(experiment("pause", env={"STANDIN_SLOW": "sft:4"}))
    kube.wait_stage("pause", "sft", "Running")
    kube.kubectl("patch", "wrpoexperiment", "pause", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    kube.wait_phase("pause", "Suspended")
    wait_until("no pod runs", lambda: not _running(kube, "pause"), 30)
    kube.kubectl("patch", "wrpoexperiment", "pause", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    kube.wait_phase("pause", "Succeeded")
    assert len(kube.stage("pause", "prepare")["attempts"]) == 1
    assert kube.stage("pause", "sft").get("failedAttempts", 0) == 0


def _running(kube: Kube, name: str) -> list[str]:
    pods = kube.list("pods", f"wrpo.ai/experiment={name}")
    return [pod["metadata"]["name"] for pod in pods if pod["status"].get("phase") in {"Running", "Pending"}]


def test_an_edit_runs_again_only_what_depends_on_it(kube: Kube) -> None:
    kube.apply(experiment("edit"), server_side=True)
    before = {entry["name"]: entry for entry in kube.wait_phase("edit", "Succeeded")["stages"]}
    kube.apply(experiment("edit", sft={"learningRate": 1e-5}), server_side=True)
    after = {entry["name"]: entry for entry in kube.wait_phase("edit", "Succeeded")["stages"]}
    assert [name for name in before if before[name]["hash"] != after[name]["hash"]] == ["sft"]
    untouched = set(before) - {"sft"}
    assert {name: before[name]["finishedAt"] for name in untouched} == {
        name: after[name]["finishedAt"] for name in untouched
    }
    stages = [child["metadata"]["labels"]["wrpo.ai/stage"] for child in kube.children("edit")]
    assert stages.count("prepare") == stages.count("sample.a") == 1


@pytest.mark.skipif(EXTERNAL, reason="reads the volume's directory")
def test_a_second_experiment_shares_the_first_ones_artifacts(kube: Kube) -> None:
    reuse = {"reuse": {"salt": "shared"}}
    kube.apply(experiment("first", **reuse), experiment("second", **reuse))
    for name in ("first", "second"):
        kube.wait_phase(name, "Succeeded", 120)
    for stage in ("prepare", "sample/a", "score/a", "curate-sft", "sft"):
        assert kube.runs_of("first", stage) == 1, stage
        assert [bool(kube.stage(name, stage).get("cached")) for name in ("first", "second")].count(True) == 1, stage


def test_deleting_finished_children_by_hand_runs_nothing_again(kube: Kube) -> None:
    kube.apply(experiment("tidy"))
    before = kube.wait_phase("tidy", "Succeeded")
    kube.kubectl("delete", "jobs,pytorchjobs", "-l", "wrpo.ai/experiment=tidy", "--wait=true")
    kube.kubectl("annotate", "wrpoexperiment", "tidy", "touched=yes")
    wait_until("the children are gone", lambda: not kube.children("tidy"))
    kube.kubectl("wait", "--for=condition=Succeeded", "wrpoexperiment/tidy", "--timeout=5s")
    assert kube.children("tidy") == []
    assert kube.status("tidy") == before


def test_a_running_child_deleted_by_hand_is_made_anew(kube: Kube) -> None:
    kube.apply(experiment("gap", env={"STANDIN_SLOW": "sample/a:3"}))
    kube.wait_stage("gap", "sample/a", "Running")
    kube.kubectl("delete", "jobs", "-l", "wrpo.ai/experiment=gap,wrpo.ai/stage=sample.a", "--wait=true")
    kube.wait_phase("gap", "Succeeded")
    assert kube.stage("gap", "sample/a")["attempts"][-1]["state"] == "Succeeded"


def test_deleting_an_experiment_half_way_takes_its_children_along(kube: Kube) -> None:
    kube.apply(experiment("gone", env={"STANDIN_SLOW": "sft:60"}))
    kube.wait_stage("gone", "sft", "Running")
    kube.kubectl("delete", "wrpoexperiment", "gone", "--wait=true")
    wait_until("its children are gone", lambda: not kube.children("gone"))
    wait_until("its pods are gone", lambda: not kube.list("pods", "wrpo.ai/experiment=gone"))
    configs = [entry for entry in kube.list("configmaps") if entry["metadata"]["name"].startswith("gone-")]
    assert configs == []


def test_a_stages_config_cannot_be_edited_by_hand(kube: Kube) -> None:
    kube.apply(experiment("config"))
    kube.wait_stage("config", "prepare", "Succeeded")
    (config,) = [e for e in kube.list("configmaps") if e["metadata"]["name"].startswith("config-prepare-")]
    patch = json.dumps({"data": dict.fromkeys(config["data"], "{}")})
    answer = kube.kubectl("patch", "configmap", config["metadata"]["name"], "--type=merge", "-p", patch, check=False)
    assert "immutable" in answer
    kube.wait_phase("config", "Succeeded")


def test_a_missing_claim_blocks_and_names_itself(kube: Kube) -> None:
    kube.apply(experiment("claimless", storage={"volume": {"claimName": "nowhere"}}))
    blocker = wait_until("a blocker shows", lambda: kube.status("claimless").get("blockers"))[0]
    assert blocker["reason"] == "MissingObject"
    assert "nowhere" in blocker["message"]
    kube.kubectl("delete", "wrpoexperiment", "claimless")


def test_every_call_of_the_operator_was_allowed(kube: Kube) -> None:
    kube.apply(experiment("rights"))
    kube.wait_phase("rights", "Succeeded", 120)
    lines = [json.loads(line) for line in kube.operator_log().splitlines() if line.startswith("{")]
    assert lines
    refused = [line for line in lines if "forbidden" in json.dumps(line).lower()]
    assert refused == []
    events = json.loads(kube.run("kubectl", "get", "events", "-A", "-o", "json"))["items"]
    assert [event["message"] for event in events if event["reason"] == "ApiRefused"] == []


def test_the_operator_may_do_nothing_that_its_job_does_not_need(kube: Kube) -> None:
    account = f"system:serviceaccount:{SYSTEM}:wrpo-operator"
    questions = {
        ("get", "secrets"): "no",
        ("list", "secrets"): "no",
        ("create", "pods"): "no",
        ("delete", "pods"): "no",
        ("get", "configmaps"): "no",
        ("update", "wrpoexperiments.wrpo.ai"): "no",
        ("delete", "persistentvolumeclaims"): "no",
        ("create", "rolebindings.rbac.authorization.k8s.io"): "no",
        ("create", "jobs.batch"): "yes",
    }
    answers = {
        (verb, what): kube.kubectl("auth", "can-i", verb, what, f"--as={account}", check=False).split()[0]
        for verb, what in questions
    }
    assert answers == questions
