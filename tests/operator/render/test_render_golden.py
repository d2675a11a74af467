"""Whole manifests as YAML files.

After a wanted change: WRPO_UPDATE_GOLDENS=1 pytest tests/operator/render, then review the diff.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft4Validator
from support.builders import make_experiment, make_planned

from wrpo_engine.contract.stage_config import StageConfig
from wrpo_operator.api.yamlio import dump, load_all
from wrpo_operator.plan.model import Manifest
from wrpo_operator.render import RenderSettings, StageCommand, render_attempt

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[3]
KUBERNETES = "1.37.0"
SETTINGS = RenderSettings(progress_url="http://wrpo-operator.wrpo-system.svc:8081")
GPU = {"requests": {"cpu": 4, "memory": "32Gi"}, "limits": {"nvidia.com/gpu": 1}}

CASES: dict[str, tuple[str, dict[str, Any], RenderSettings]] = {
    "prepare": ("prepare", {}, SETTINGS),
    "sample-source-sharded-gpu": (
        "sample/qwen", {"sampling": {"shards": 4}, "resources": {"sample": GPU}}, SETTINGS),
    "sample-target": ("sample/target", {}, SETTINGS),
    "score-s3": (
        "score/qwen",
        {"storage": {"volume": None,
                     "s3": {"uri": "s3://bucket/wrpo", "endpoint": "https://s3.example.org",
                            "credentialsSecretName": "s3-credentials"}},
         "reward": {"shards": 2}}, SETTINGS),
    "curate-triples": ("curate-triples", {}, SETTINGS),
    "sft-one-node": ("sft", {"training": {"precision": "float32"}}, SETTINGS),
    "train-two-nodes-gpu": (
        "train",
        {"training": {"nodes": 2, "gpusPerNode": 8, "microBatchTokens": 16384},
         "resources": {"train": {"requests": {"cpu": "32", "memory": "256Gi"}}},
         "deadlines": {"activeSeconds": 86400}}, SETTINGS),
    "train-queued": (
        "train",
        {"scheduling": {"queueName": "gpus", "priorityClassName": "high", "schedulerName": "custom",
                        "nodeSelector": {"gpu": "h100"},
                        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]}},
        SETTINGS),
    "train-in-a-pod-group": (
        "train",
        {"training": {"nodes": 2}, "scheduling": {"podGroup": "Volcano", "priorityClassName": "high"}}, SETTINGS),
    "train-queued-by-topology": (
        "train",
        {"training": {"nodes": 2},
         "scheduling": {"queueName": "gpus", "workloadPriorityClassName": "research",
                        "requiredTopology": "cloud.provider.com/topology-rack"}}, SETTINGS),
    "train-as-trainjob": (
        "train",
        {"training": {"nodes": 2, "gpusPerNode": 4, "backend": "TrainJob"}, "scheduling": {"podGroup": "Volcano"},
         "deadlines": {"activeSeconds": 86400}}, SETTINGS),
    "train-as-jobset": (
        "train",
        {"training": {"nodes": 2, "gpusPerNode": 4, "backend": "JobSet"},
         "scheduling": {"podGroup": "SchedulerPlugins", "schedulerName": "co"},
         "deadlines": {"activeSeconds": 86400}}, SETTINGS),
    "score-by-an-endpoint": (
        "score/qwen",
        {"reward": {"model": None, "endpoint": "http://rewards.ml:8000/v1", "endpointModel": "rm",
                    "apiKeySecretRef": {"name": "rewards", "key": "token"}}}, SETTINGS),
    "evaluate-with-everything": (
        "evaluate",
        {"images": {"sampler": "registry.example.org/sampler:1"},
         "imagePullSecrets": [{"name": "pull"}],
         "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token", "optional": True}}},
                 {"name": "HF_HOME", "value": "/cache"}],
         "deadlines": {"activeSeconds": 3600},
         "podTemplate": {
             "metadata": {"labels": {"team": "alignment"}, "annotations": {"sidecar.istio.io/inject": "false"}},
             "spec": {"securityContext": {"fsGroup": 2000},
                      "volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "cache"}}],
                      "initContainers": [{"name": "warm", "image": "busybox", "command": ["true"]}],
                      "containers": [{"name": "stage", "env": [{"name": "NCCL_DEBUG", "value": "INFO"}],
                                      "volumeMounts": [{"name": "cache", "mountPath": "/cache"}]}]}}},
        RenderSettings(image_pull_policy="IfNotPresent", image_pull_secrets=("default",),
                       extra_env={"HF_HOME": "/elsewhere", "HTTPS_PROXY": "http://proxy:3128"})),
    "answer-with-a-source": (
        "answer/qwen--held-out",
        {"evaluation": {"systems": [{"name": "large", "source": "qwen"}], "shards": 3}}, SETTINGS),
    "judge-by-an-endpoint": (
        "judge/target--alpaca--gpt",
        {"evaluation": {
            "benchmarks": [{"name": "alpaca", "kind": "AlpacaEval2"}],
            "judges": [{"name": "gpt", "endpoint": "https://judges.example.org/v1", "model": "gpt", "concurrency": 4,
                        "apiKeySecretRef": {"name": "judges", "key": "token"}}]}}, SETTINGS),
    "judge-that-is-served": (
        "judge/target--alpaca--own",
        {"evaluation": {
            "benchmarks": [{"name": "alpaca", "kind": "AlpacaEval2"}],
            "judges": [{"name": "own", "serve": {"model": "org/judge",
                                                 "resources": {"limits": {"nvidia.com/gpu": 2}}}}]}}, SETTINGS),
    "report-stand-in": (
        "report", {},
        RenderSettings(commands={"report": StageCommand(("sleep", "1"), image="busybox:1")})),
}  # fmt: skip


def render(case: str) -> tuple[Manifest, ...]:
    stage, changes, settings = CASES[case]
    experiment = make_experiment(**changes)
    return render_attempt(experiment, make_planned(experiment, stage), settings)


def pod_templates(child: Manifest) -> list[dict[str, Any]]:
    if child["kind"] == "Job":
        return [child["spec"]["template"]]
    if child["kind"] == "TrainingRuntime":
        return [job["template"]["spec"]["template"] for job in child["spec"]["template"]["spec"]["replicatedJobs"]]
    if child["kind"] == "JobSet":
        return [job["template"]["spec"]["template"] for job in child["spec"]["replicatedJobs"]]
    return [replica["template"] for replica in child["spec"].get("pytorchReplicaSpecs", {}).values()]


@pytest.mark.parametrize("case", CASES)
def test_manifests_are_as_reviewed(case: str) -> None:
    text = "---\n".join(dump(manifest) for manifest in render(case))
    path = GOLDEN / f"{case}.yaml"
    if os.environ.get("WRPO_UPDATE_GOLDENS"):
        path.write_text(text)
    assert path.read_text() == text


def test_there_is_no_golden_without_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_manifests_are_strictly_valid(case: str) -> None:
    config, *others, child = load_all((GOLDEN / f"{case}.yaml").read_text())
    kubernetes_validate.validate(config, KUBERNETES, strict=True)
    if child["kind"] == "Job":
        kubernetes_validate.validate(child, KUBERNETES, strict=True)
    templates = [template for manifest in (*others, child) for template in pod_templates(manifest)]
    assert templates
    for template in templates:
        # The validator knows whole objects alone: a Job around the template makes it check the template.
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": {"template": template}}
        kubernetes_validate.validate(job, KUBERNETES, strict=True)


PYTORCH_CASES = [
    case
    for case, (stage, changes, _) in CASES.items()
    if stage in {"sft", "train"} and "backend" not in changes.get("training", {})
]


@pytest.mark.parametrize("case", PYTORCH_CASES)
def test_pytorchjobs_follow_their_schema(case: str) -> None:
    job = render(case)[-1]
    assert errors_of(job) == []
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert replicas["Master"]["replicas"] == 1
    assert {replica["restartPolicy"] for replica in replicas.values()} == {"Never"}
    assert [template["spec"]["containers"][0]["name"] for template in pod_templates(job)] == ["pytorch"] * len(replicas)
    assert len(job["metadata"]["name"]) <= 50


def errors_of(manifest: Manifest) -> list[Any]:
    """Return what a custom resource's own schema says against a manifest, unknown fields included."""
    schemas = {
        definition["spec"]["names"]["kind"]: definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        for path in (ROOT / "operator/wrpo_devcluster/manifests").glob("*.yaml")
        for definition in yaml.safe_load_all(path.read_text())
    }
    return list(Draft4Validator(closed(schemas[manifest["kind"]])).iter_errors(manifest))


def test_a_jobset_follows_its_schema_and_its_job_is_a_valid_one() -> None:
    child = render("train-as-jobset")[-1]
    assert errors_of(child) == []
    (replicated,) = child["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **replicated["template"]}
    kubernetes_validate.validate(job, KUBERNETES, strict=True)
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def closed(node: dict[str, Any]) -> dict[str, Any]:
    """Refuse unknown fields where the schema does not keep them."""
    out = dict(node)
    if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
        out["properties"] = {name: closed(field) for name, field in node["properties"].items()}
        out["additionalProperties"] = False
    elif isinstance(node.get("additionalProperties"), dict):
        out["additionalProperties"] = closed(node["additionalProperties"])
    return out


@pytest.mark.parametrize("case", CASES)
def test_the_engine_reads_what_the_operator_writes(case: str) -> None:
    config, *_ = render(case)
    stage, changes, _ = CASES[case]
    parsed = StageConfig.model_validate_json(config["data"]["stage.json"])
    planned = make_planned(make_experiment(**changes), stage)
    assert parsed.params == planned.node.params
    assert parsed.runtime == planned.node.runtime
    assert parsed.output.stage == stage
    assert {role: ref.hash for role, ref in parsed.inputs.items()} == dict(planned.input_hashes)


@pytest.mark.parametrize("case", CASES)
def test_no_mount_path_stands_in_the_config(case: str) -> None:
    config, *children = render(case)
    mounts = [mount["mountPath"] for child in children for template in pod_templates(child)
              for mount in template["spec"]["containers"][0]["volumeMounts"]]  # fmt: skip
    assert not [mount for mount in mounts if mount in json.dumps(config["data"])]
