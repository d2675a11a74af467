"""What must hold of every manifest, whatever the spec says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import make_experiment, make_planned, merged

from wrpo_engine.config import ExitCode
from wrpo_operator.api.names import ANNOTATION_TEMPLATE_HASH, LABEL_QUEUE
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.plan.model import Experiment, Manifest
from wrpo_operator.render import RenderSettings, render_attempt
from wrpo_operator.render.merge import strategic_merge

STAGES = [
    *("prepare", "sample/qwen", "score/target", "sft", "train", "evaluate", "report"),
    *("answer/target--held-out", "grade/sft--held-out--main"),
]
SETTINGS = RenderSettings(progress_url="http://wrpo-operator.wrpo-system.svc:8081/")


def child_of(experiment: Experiment, stage: str, attempt: int = 1) -> Manifest:
    return render_attempt(experiment, make_planned(experiment, stage, attempt), SETTINGS)[1]


def pods_of(child: Manifest) -> list[dict[str, Any]]:
    spec = child["spec"]
    if child["kind"] == "Job":
        return [spec["template"]["spec"]]
    return [replica["template"]["spec"] for replica in spec["pytorchReplicaSpecs"].values()]


TEMPLATES = st.sampled_from(
    [
        {},
        {"spec": {"containers": [{"name": "stage", "securityContext": {"runAsUser": 1000}}]}},
        {"spec": {"initContainers": [{"name": "a", "image": "a"}]}},
        {"metadata": {"labels": {"a": "b"}}, "spec": {"dnsPolicy": "None"}},
    ]
)
CHANGES = st.fixed_dictionaries(
    {"podTemplate": TEMPLATES},
    optional={
        "training": st.sampled_from([{"nodes": 3}, {"gpusPerNode": 2}]),
        "scheduling": st.just({"queueName": "q"}),
        "env": st.just([{"name": "HOME", "value": "/root"}]),
    },
)


@given(CHANGES, st.sampled_from(STAGES))
def test_every_pod_is_restricted_and_has_no_api_token(changes: dict[str, Any], stage: str) -> None:
    for pod in pods_of(child_of(make_experiment(**changes), stage)):
        assert pod["automountServiceAccountToken"] is False
        assert pod["serviceAccountName"] == "wrpo-stage"
        assert pod["restartPolicy"] == "Never"
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}


@given(CHANGES, st.sampled_from(STAGES))
def test_a_variable_is_set_once(changes: dict[str, Any], stage: str) -> None:
    for pod in pods_of(child_of(make_experiment(**changes), stage)):
        names = [variable["name"] for variable in pod["containers"][0]["env"]]
        assert len(names) == len(set(names))


@pytest.mark.parametrize("stage", STAGES)
def test_config_and_child_die_with_their_experiment(stage: str) -> None:
    experiment = make_experiment()
    for manifest in render_attempt(experiment, make_planned(experiment, stage), SETTINGS):
        (owner,) = manifest["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (experiment.uid, True, True)


def test_only_pods_that_ask_the_reward_get_its_key() -> None:
    reward = {"model": None, "endpoint": "http://reward", "apiKeySecretRef": {"name": "reward", "key": "key"}}
    experiment = make_experiment(reward=reward)
    holders = {
        stage
        for stage in STAGES
        for pod in pods_of(child_of(experiment, stage))
        if "WRPO_REWARD_API_KEY" in {variable["name"] for variable in pod["containers"][0]["env"]}
    }
    assert holders == {"score/target", "grade/sft--held-out--main"}


JUDGES = {
    "benchmarks": [{"name": "alpaca", "kind": "AlpacaEval2"}],
    "judges": [
        {"name": "gpt", "endpoint": "https://a/v1", "model": "gpt", "apiKeySecretRef": {"name": "gpt", "key": "k"}},
        {"name": "own", "serve": {"model": "org/judge"}},
        {"name": "self", "serveReward": "main"},
        {"name": "rm", "reward": {"endpoint": "http://b/v1"}, "apiKeySecretRef": {"name": "rm", "key": "k"}},
    ],
}


def test_a_key_of_a_judge_is_given_to_the_pods_that_ask_it_and_to_no_other() -> None:
    experiment = make_experiment(evaluation=JUDGES)
    assert experiment.spec is not None
    keys = {}
    for node in build_graph(experiment.spec):
        child = child_of(experiment, str(node.id))
        for variable in (variable for pod in pods_of(child) for variable in pod["containers"][0]["env"]):
            if "API_KEY" in variable["name"]:
                keys[str(node.id)] = (variable["name"], variable["valueFrom"]["secretKeyRef"]["name"])
    models = ("target", "sft", "trained")
    assert keys == {
        **{f"judge/{model}--alpaca--gpt": ("WRPO_JUDGE_API_KEY", "gpt") for model in models},
        **{f"grade/{model}--{name}--rm": ("WRPO_REWARD_API_KEY", "rm")
           for model in models for name in ("alpaca", "held-out")},
    }  # fmt: skip


def test_pods_that_ask_an_endpoint_are_labelled_for_network_policies() -> None:
    experiment = make_experiment(evaluation=JUDGES)
    labels = {
        judge: child_of(experiment, f"judge/target--alpaca--{judge}")["spec"]["template"]["metadata"]["labels"]
        for judge in ("gpt", "own", "self")
    }
    assert {judge: found.get("wrpo.ai/egress") for judge, found in labels.items()} == {
        "gpt": "judge", "own": None, "self": None,
    }  # fmt: skip


def test_a_judge_that_serves_a_model_has_the_image_with_vllm() -> None:
    experiment = make_experiment(evaluation=JUDGES, images={"sampler": "sampler:1", "trainer": "trainer:1"})
    images = {
        judge: pods_of(child_of(experiment, f"judge/target--alpaca--{judge}"))[0]["containers"][0]["image"]
        for judge in ("gpt", "own", "self")
    }
    assert images == {"gpt": "trainer:1", "own": "sampler:1", "self": "trainer:1"}


def test_rendering_twice_gives_the_same() -> None:
    assert child_of(make_experiment(), "train") == child_of(make_experiment(), "train")


def test_the_template_hash_follows_the_template() -> None:
    hashes = {
        child_of(make_experiment(**changes), "train")["metadata"]["annotations"][ANNOTATION_TEMPLATE_HASH]
        for changes in ({}, {"images": {"trainer": "a/b"}}, {"training": {"nodes": 2}})
    }
    assert len(hashes) == 3


def test_another_config_has_another_name_for_it_never_changes() -> None:
    names = []
    for tokens in (1000, 2000):
        experiment = make_experiment(training={"microBatchTokens": tokens})
        config, child = render_attempt(experiment, make_planned(experiment, "train"), SETTINGS)
        assert config["immutable"] is True
        volumes = {volume["name"]: volume for volume in pods_of(child)[0]["volumes"]}
        assert volumes["wrpo-config"]["configMap"]["name"] == config["metadata"]["name"]
        names.append((config["metadata"]["name"], child["metadata"]["name"]))
    assert names[0][0] != names[1][0]
    assert names[0][1] == names[1][1]


def test_bad_input_fails_a_job_at_once_and_a_temporary_error_does_not() -> None:
    rules = child_of(make_experiment(), "prepare")["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert (rules[0]["action"], rules[1]["action"]) == ("Ignore", "FailJob")
    codes = set(rules[1]["onExitCodes"]["values"])
    assert codes == set(range(64, 79)) - {ExitCode.TEMPORARY}


def test_a_shard_is_tried_once_more_in_place_unless_retries_are_off() -> None:
    limits = {child_of(make_experiment(retries={"limit": limit}), "sample/qwen")["spec"]["backoffLimitPerIndex"]
              for limit in (0, 1, 5)}  # fmt: skip
    assert limits == {0, 1}
    assert child_of(make_experiment(), "prepare")["spec"]["backoffLimit"] == 0


def test_suspend_is_ours_without_a_queue_and_kueue_s_with_one() -> None:
    free, queued = make_experiment(), make_experiment(scheduling={"queueName": "q"})
    assert child_of(free, "prepare")["spec"]["suspend"] is False
    assert child_of(free, "train")["spec"]["runPolicy"]["suspend"] is False
    for stage in ("prepare", "train"):
        child = child_of(queued, stage)
        assert child["metadata"]["labels"][LABEL_QUEUE] == "q"
        assert "suspend" not in child["spec"]
        assert "suspend" not in child["spec"].get("runPolicy", {})


def test_two_attempts_of_a_gang_use_different_ports() -> None:
    experiment = make_experiment()
    ports = {
        pods_of(child_of(experiment, stage, attempt))[0]["containers"][0]["ports"][0]["containerPort"]
        for stage, attempt in (("sft", 1), ("train", 1), ("train", 2))
    }
    assert len(ports) == 3
    assert all(20000 <= port < 40000 for port in ports)


def test_a_gang_asks_for_its_gpus() -> None:
    experiment = make_experiment(training={"gpusPerNode": 8, "nodes": 2}, sft={"gpusPerNode": 4, "nodes": 1})
    train, sft = child_of(experiment, "train"), child_of(experiment, "sft")
    assert train["spec"]["nprocPerNode"] == "8"
    assert [pod["containers"][0]["resources"]["limits"] for pod in pods_of(train)] == [{"nvidia.com/gpu": "8"}] * 2
    assert [pod["containers"][0]["resources"]["limits"] for pod in pods_of(sft)] == [{"nvidia.com/gpu": "4"}]


def test_progress_is_posted_only_where_it_is_received() -> None:
    experiment = make_experiment()
    silent = render_attempt(experiment, make_planned(experiment, "train"), RenderSettings())[1]
    pod = pods_of(silent)[0]
    assert not [item for item in pod["containers"][0]["env"] if item["name"].startswith("KUBEFLOW_")]
    assert "wrpo-progress-token" not in {volume["name"] for volume in pod["volumes"]}
    env = {
        item["name"]: item.get("value") for item in pods_of(child_of(experiment, "train", 2))[0]["containers"][0]["env"]
    }
    assert env["KUBEFLOW_TRAINER_SERVER_URL"] == (
        "http://wrpo-operator.wrpo-system.svc:8081/v1/namespaces/ml/experiments/demo/stages/train/attempts/2"
    )


MERGES: dict[str, tuple[Any, Any, Any]] = {
    "maps are merged": ({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}}, {"a": 1, "b": {"c": 2, "d": 3}}),
    "keyed lists are merged item by item": (
        {"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "B", "value": "2"}, {"name": "A", "value": "3"}]},
        {"env": [{"name": "A", "value": "3"}, {"name": "B", "value": "2"}]}),
    "other lists are replaced": ({"command": ["a", "b"]}, {"command": ["c"]}, {"command": ["c"]}),
    "mounts are told apart by their path": (
        {"volumeMounts": [{"name": "a", "mountPath": "/a"}]}, {"volumeMounts": [{"name": "a", "mountPath": "/b"}]},
        {"volumeMounts": [{"name": "a", "mountPath": "/a"}, {"name": "a", "mountPath": "/b"}]}),
}  # fmt: skip


@pytest.mark.parametrize(("base", "patch", "expected"), MERGES.values(), ids=MERGES.keys())
def test_merges_as_kubernetes_does(base: Any, patch: Any, expected: Any) -> None:
    assert strategic_merge(base, patch) == expected


@given(st.dictionaries(st.sampled_from("abc"), st.integers() | st.dictionaries(st.sampled_from("xy"), st.integers())))
def test_an_empty_patch_changes_nothing_and_a_patch_on_nothing_is_itself(value: dict[str, Any]) -> None:
    assert strategic_merge(value, {}) == value
    assert strategic_merge({}, value) == value
    assert strategic_merge(value, value) == merged(value, value)


def test_an_experiment_without_a_valid_spec_cannot_be_rendered() -> None:
    from dataclasses import replace

    experiment = make_experiment()
    broken = replace(experiment, spec=None)
    with pytest.raises(ValueError, match="experiment ml/demo has no valid spec to render from"):
        render_attempt(broken, make_planned(experiment, "train"), SETTINGS)
