"""Whole experiments through the real kubectl: chart -> operator -> children -> status."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from e2e_support import NAMESPACE, OPERATOR, SYSTEM, Kube, experiment, simulate
from support.patience import wait_until

from wrpo_operator.cli.install import find_tool

pytestmark = pytest.mark.cluster


def test_an_experiment_runs_to_success_and_kubectl_shows_it(kube: Kube) -> None:
    sources = [{"name": "a", "model": "org/a"}, {"name": "b", "model": "org/b"}]
    whole = experiment(
        "whole",
        short=False,
        sources=sources,
        training={"nodes": 2},
        scheduling={"gang": "BestEffort"},
        **kube.behave(hold="sample/a:whole"),
    )
    with _watched(kube) as seen:
        assert "created" in kube.apply(whole)
        wait_until("the watch prints that it runs", lambda: any("Running" in line for line in seen))
        kube.release("whole")
        kube.wait_condition("Succeeded", "wrpoexperiment/whole")
        # The watch is its own connection: it may print the last change after the wait has seen it.
        wait_until("the watch prints the end", lambda: any("Succeeded" in line for line in seen))
    status = kube.status("whole")
    assert (status["phase"], status["progress"]["percent"]) == ("Succeeded", 100)
    assert {entry["name"] for entry in status["stages"]} == {
        *("prepare", "sample/a", "sample/b", "sample/target", "score/a", "score/b", "score/target"),
        *("curate-sft", "sft", "curate-triples", "train", "evaluate", "report"),
        *(f"answer/{model}--held-out" for model in ("target", "sft", "trained")),
        *(f"grade/{model}--held-out--main" for model in ("target", "sft", "trained")),
    }
    assert all(entry["state"] == "Succeeded" and len(entry["attempts"]) == 1 for entry in status["stages"])
    if not kube.simulated:
        assert kube.stage("whole", "train")["metrics"] == {"loss": 0.25, "rows": 7}
    kinds = sorted((child["kind"], child["metadata"]["labels"]["wrpo.ai/stage"]) for child in kube.children("whole"))
    assert [stage for kind, stage in kinds if kind == "PyTorchJob"] == ["sft", "train"]
    assert len(kinds) == 19
    described = kube.kubectl("describe", "wrpoexperiment", "whole")
    assert "StageStarted" in described
    assert "All 19 stages have succeeded." in described
    if not kube.simulated:
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


@pytest.mark.usefixtures("real_pods", "operator_in_cluster")
def test_progress_posts_reach_the_status_while_a_stage_runs(kube: Kube) -> None:
    kube.apply(experiment("progress", **kube.behave(hold="sft:progress")))
    kube.wait_stage("progress", "sft", "Running")
    entry = wait_until("progress shows", lambda: (e := kube.stage("progress", "sft")).get("progress") and e)
    assert (entry["progress"], entry["state"]) == (40, "Running")
    assert entry["metrics"] == {"loss": 0.5}
    assert 0 < kube.status("progress")["progress"]["percent"] < 100
    kube.release("progress")
    kube.wait_phase("progress", "Succeeded")


def test_a_failed_stage_ends_the_experiment_with_the_engines_own_words(kube: Kube) -> None:
    kube.apply(experiment("fails", **kube.behave(fail="sft")))
    status = kube.wait_phase("fails", "Failed")
    (failed,) = [entry for entry in status["conditions"] if entry["type"] == "Failed"]
    assert failed["status"] == "True"
    own = ("ModelNotFound", "spec.target.model", "there is no model named nobody/nothing.", "Check the spelling.")
    for words in (kube.first("sft"), *(("exited with code 65",) if kube.simulated else own)):
        assert words in failed["message"]
    attempts = kube.stage("fails", kube.first("sft"))["attempts"]
    assert [(entry["state"], entry["exitCode"], entry["failure"]) for entry in attempts] == [("Failed", 65, "Config")]
    kube.wait_condition("Failed", "wrpoexperiment/fails")


@pytest.mark.usefixtures("real_pods")
def test_a_crash_is_tried_again(kube: Kube) -> None:
    kube.apply(experiment("crashes", **kube.behave(crash="sft")))
    kube.wait_phase("crashes", "Succeeded")
    attempts = kube.stage("crashes", "sft")["attempts"]
    assert [(entry["number"], entry["state"]) for entry in attempts] == [(1, "Failed"), (2, "Succeeded")]


@pytest.mark.usefixtures("simulated_pods")
def test_a_stage_that_always_crashes_is_tried_as_often_as_its_limit_says(kube: Kube) -> None:
    kube.apply(experiment("hopeless", **kube.behave(crash="prepare")))
    status = kube.wait_phase("hopeless", "Failed")
    attempts = kube.stage("hopeless", "prepare")["attempts"]
    assert [(entry["number"], entry["exitCode"], entry["failure"]) for entry in attempts] == [
        (number, 1, "Application") for number in (1, 2, 3)
    ]
    (failed,) = [entry for entry in status["conditions"] if entry["type"] == "Failed"]
    assert "prepare" in failed["message"]


@pytest.mark.usefixtures("simulated_pods")
def test_a_gang_is_suspended_taken_up_with_new_settings_and_fails_for_good_on_exit_code_65(kube: Kube) -> None:
    """Stages that have succeeded stay, so an edit of the SFT stage lets the gang alone behave in a new way."""
    kube.apply(experiment("gang"))
    kube.wait_phase("gang", "Succeeded")
    kube.edit("gang", sft={"learningRate": 2e-5}, **simulate(run_seconds="forever"))
    kube.wait_stage("gang", "sft", "Running")
    kube.edit("gang", suspend=True)
    kube.wait_phase("gang", "Suspended")
    wait_until("no pod runs", lambda: not _running(kube, "gang"))
    kube.edit("gang", suspend=False, **simulate(run_seconds="1"))
    kube.wait_phase("gang", "Succeeded")
    kube.edit("gang", sft={"learningRate": 3e-5}, **simulate(run_seconds="1", exit_code="65"))
    kube.wait_phase("gang", "Failed")
    attempts = kube.stage("gang", "sft")["attempts"]
    assert [(entry["state"], entry["exitCode"], entry["failure"]) for entry in attempts] == [("Failed", 65, "Config")]
    assert [len(kube.stage("gang", stage)["attempts"]) for stage in ("prepare", "sample/a", "curate-sft")] == [1, 1, 1]


@pytest.mark.usefixtures("simulated_pods")
def test_an_image_that_cannot_be_pulled_blocks_until_the_settings_are_edited(kube: Kube) -> None:
    kube.apply(experiment("imageless", **simulate(pull_error="true")))
    blocker = wait_until("a blocker shows", lambda: kube.status("imageless").get("blockers"))[0]
    assert (blocker["stage"], blocker["object"].split("/")[0]) == ("prepare", "Pod")
    assert "pull" in blocker["message"].lower()
    kube.edit("imageless", podTemplate=None)
    status = kube.wait_phase("imageless", "Succeeded")
    assert status.get("blockers", []) == []


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
    kube.apply(experiment("pause", **kube.behave(hold="sft:pause")))
    kube.wait_stage("pause", "sft", "Running")
    kube.edit("pause", suspend=True)
    kube.wait_phase("pause", "Suspended")
    wait_until("no pod runs", lambda: not _running(kube, "pause"))
    kube.release("pause")
    kube.edit("pause", suspend=False)
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


def test_a_second_experiment_shares_the_first_ones_artifacts(kube: Kube) -> None:
    reuse: dict[str, Any] = {"reuse": {"salt": "shared"}}
    kube.apply(experiment("first", **reuse), experiment("second", **reuse))
    for name in ("first", "second"):
        kube.wait_phase(name, "Succeeded")
    for stage in ("prepare", "sample/a", "score/a", "curate-sft", "sft"):
        one, other = sorted((kube.stage(name, stage) for name in ("first", "second")), key=lambda e: e["startedAt"])
        assert one["hash"] == other["hash"]
        # Who comes second waits for the first, and then finds what it has left.
        assert one["finishedAt"] <= other["startedAt"], stage
        if kube.simulated:
            continue
        if kube.state_dir is not None:
            assert kube.runs_of("first", stage) == 1, stage
        assert [bool(kube.stage(name, stage).get("cached")) for name in ("first", "second")].count(True) == 1, stage


def test_deleting_finished_children_by_hand_runs_nothing_again(kube: Kube) -> None:
    kube.apply(experiment("tidy"))
    before = kube.wait_phase("tidy", "Succeeded")
    kube.kubectl("delete", "jobs,pytorchjobs", "-l", "wrpo.ai/experiment=tidy", "--cascade=background", "--wait=true")
    kube.kubectl("annotate", "wrpoexperiment", "tidy", "touched=yes")
    wait_until("the children are gone", lambda: not kube.children("tidy"))
    kube.wait_condition("Succeeded", "wrpoexperiment/tidy")
    assert kube.children("tidy") == []
    assert kube.status("tidy") == before


def test_a_running_child_deleted_by_hand_is_made_anew(kube: Kube) -> None:
    kube.apply(experiment("gap", **kube.behave(hold="sample/a:gap")))
    kube.wait_stage("gap", "sample/a", "Running")
    selector = "wrpo.ai/experiment=gap,wrpo.ai/stage=sample.a"
    kube.kubectl("delete", "jobs", "-l", selector, "--cascade=background", "--wait=true")
    kube.release("gap")
    kube.wait_phase("gap", "Succeeded")
    assert kube.stage("gap", "sample/a")["attempts"][-1]["state"] == "Succeeded"


def test_deleting_an_experiment_half_way_takes_its_children_along(kube: Kube) -> None:
    kube.apply(experiment("gone", **kube.behave(slow="sft:60")))
    kube.wait_stage("gone", kube.first("sft"), "Running")
    kube.kubectl("delete", "wrpoexperiment", "gone", "--cascade=background", "--wait=true")
    wait_until("its children are gone", lambda: not kube.children("gone"))
    wait_until("its pods are gone", lambda: not kube.list("pods", "wrpo.ai/experiment=gone"))

    def configs() -> list[str]:
        names = [entry["metadata"]["name"] for entry in kube.list("configmaps")]
        return [name for name in names if name.startswith("gone-")]

    wait_until("its stages' configurations are gone", lambda: not configs())


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
    blocker = wait_until("the blocker shows", lambda: kube.blocker("claimless", "MissingObject"))
    assert "nowhere" in blocker["message"]
    kube.kubectl("delete", "wrpoexperiment", "claimless", "--cascade=background")


def test_every_call_of_the_operator_was_allowed(kube: Kube) -> None:
    # Other tests refuse requests on purpose.
    before = kube.operator_log().count("\n")
    kube.apply(experiment("rights"))
    kube.wait_phase("rights", "Succeeded")
    lines = [json.loads(line) for line in kube.operator_log().splitlines()[before:] if line.startswith("{")]
    assert lines
    refused = [line for line in lines if "forbidden" in json.dumps(line).lower()]
    assert refused == []
    assert [event["message"] for event in kube.list("events") if event["reason"] == "ApiRefused"] == []


def test_the_operator_may_do_nothing_that_its_job_does_not_need(kube: Kube) -> None:
    account = f"system:serviceaccount:{SYSTEM}:{OPERATOR}"
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
