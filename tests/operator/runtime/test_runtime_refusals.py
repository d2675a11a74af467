"""Whatever the API server answers, an experiment has a whole status, and progress or a blocker that says what to do."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from support.builders import make_experiment
from support.reconciler_world import World
from support.refusal_words import WORDS

from wrpo_operator.api.conditions import ConditionType
from wrpo_operator.runtime.errors import Details, KubeError
from wrpo_operator.runtime.refusals import MAX_WORDS, RefusalStore, judge
from wrpo_operator.runtime.rendered_paths import user_paths
from wrpo_operator.runtime.resources import CONFIG_MAPS, EVENTS, EXPERIMENTS, JOBS, JsonObject

CODES = (400, 401, 403, 404, 405, 408, 409, 410, 413, 415, 418, 422, 429, 451, 500, 501, 502, 503, 504, 599)
STEPS = (("apply", "jobs"), ("apply", "configmaps"), ("apply", "serviceaccounts"))


@pytest.fixture
def world(kube: Any, clock: Any) -> World:
    return World(kube, clock)


def look(world: World, times: int = 1) -> float | None:
    """Reconcile, each time when the one before wanted it."""
    delay: float | None = 0.0
    for _ in range(times):
        delay = world.reconcile()
        world.clock.at += delay or 0.0
    return delay


def conditions(world: World) -> dict[str, tuple[str, str]]:
    return {entry["type"]: (entry["status"], entry["reason"]) for entry in world.status()["conditions"]}


def assert_lawful(world: World) -> JsonObject:
    """Return the one blocker, after the law was asserted."""
    status = world.status()
    assert status["observedGeneration"] == world.generation
    assert status["phase"] in {"Pending", "Running", "Invalid"}
    assert set(conditions(world)) == {kind.value for kind in ConditionType}
    blocker: JsonObject = status["blockers"][0]
    assert len(blocker["message"]) <= 4096
    assert "PATCH /apis" not in blocker["message"]
    assert blocker["message"].endswith((".", "…"))
    return blocker


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS.keys())
@pytest.mark.parametrize("code", CODES)
def test_every_refusal_of_any_code_length_and_wording_is_told_with_a_whole_status(
    world: World, code: int, words: str
) -> None:
    world.put_experiment()
    step = STEPS[(code + len(words)) % len(STEPS)]
    world.kube.fail[step] = KubeError(code, "Reason", words, request="PATCH /apis/x")
    delay = world.reconcile()
    while not world.status()["blockers"]:
        world.clock.at += delay or 0.0
        delay = world.reconcile()
    assert_lawful(world)
    assert world.clock.at - 1000 < 10
    # Further looks write nothing but the tries themselves.
    for _ in range(8):
        look(world)
        assert {what for verb, what, _ in world.kube.writes()} <= {step[1]}
    world.kube.fail.clear()
    world.clock.at += 600
    look(world, 3)
    assert world.status().get("blockers", []) == []
    assert conditions(world)["Accepted"][0] == "True"
    assert world.job("prepare")


PASSING = (401, 404, 408, 409, 429, 500, 503)


@pytest.mark.parametrize("code", PASSING)
def test_an_error_that_may_pass_is_told_at_the_third_time_and_the_status_is_whole_before(
    world: World, code: int
) -> None:
    world.put_experiment()
    world.kube.fail["apply", "jobs"] = KubeError(code, "", "etcdserver: leader changed")
    look(world, 2)
    assert (world.status()["phase"], world.status()["blockers"]) == ("Pending", [])
    assert conditions(world)["Blocked"] == ("False", "NothingBlocks")
    look(world)
    assert assert_lawful(world)["message"] == (
        "The API server refuses the Job: etcdserver: leader changed. The request is retried until it is accepted."
    )


FINAL = {
    "an unknown field": (
        500,
        "failed to create typed patch object (a/x; batch/v1): .spec.template.spec.nonsense: field not declared",
        "spec.podTemplate.spec.nonsense: field not declared",
    ),
    "a number for a string": (
        500,
        'failed to create typed patch object (x): .spec.template.spec.containers[name="stage"].image: expected string',
        "spec.podTemplate.spec.containers[stage].image: expected string",
    ),
    "a bad toleration": (
        422,
        'Job.batch "x" is invalid: spec.template.spec.tolerations[0].operator: Invalid value: "Is"',
        'spec.podTemplate.spec.tolerations[0].operator: Invalid value: "Is"',
    ),
    "an index among the operator's own variables": (
        422,
        'Job.batch "x" is invalid: spec.template.spec.containers[0].env[4].name: Invalid value: "a b"',
        'spec.podTemplate.spec.containers[stage].env[a b].name: Invalid value: "a b"',
    ),
    "a manifest that cannot be read": (400, "error decoding YAML", "error decoding YAML"),
    "a manifest that is too large": (413, "Request entity too large: limit is 3145728", "limit is 3145728"),
}
TEMPLATE = {
    "spec": {
        "nonsense": True,
        "tolerations": [{"operator": "Is"}],
        "containers": [{"name": "stage", "image": 7, "env": [{"name": "a b", "value": "1"}]}],
    }
}


@pytest.mark.parametrize(("code", "words", "told"), FINAL.values(), ids=FINAL.keys())
def test_what_no_waiting_cures_is_invalid_names_the_users_field_and_ends_with_an_edit(
    world: World, code: int, words: str, told: str
) -> None:
    world.put_experiment(podTemplate=TEMPLATE)
    world.kube.fail["apply", "jobs"] = KubeError(code, "Invalid", words)
    assert (look(world) or 0) > 0
    blocker = assert_lawful(world)
    assert told in blocker["message"]
    assert "spec.template" not in blocker["message"]
    assert (world.status()["phase"], world.status()["reason"]) == ("Invalid", "InvalidSpec")
    assert conditions(world)["Accepted"] == ("False", "InvalidSpec")
    assert blocker["stage"] == "prepare"
    (event,) = [
        obj["message"] for (kind, *_), obj in world.kube.objects.items() if kind == EVENTS and told in obj["message"]
    ][:1]
    assert event.startswith("The API server cannot accept the Job that the spec requests: ")
    world.clock.at += 300
    world.reconcile()
    assert world.kube.writes() == []
    world.kube.fail.clear()
    world.edit(podTemplate={})
    look(world)
    assert (world.status()["phase"], world.status()["observedGeneration"]) == ("Pending", 2)
    assert world.job("prepare")


def test_a_job_of_somebody_else_under_the_childs_name_is_to_be_deleted(world: World) -> None:
    world.put_experiment()
    words = 'Job.batch "x" is invalid: [spec.template.spec: Invalid value: {' + "v" * 6_400 + "}: field is immutable]"
    world.kube.fail["apply", "jobs"] = KubeError(422, "Invalid", words)
    look(world)
    blocker = assert_lawful(world)
    assert blocker["reason"] == "NameTaken"
    name = blocker["object"].removeprefix("Job/")
    assert blocker["message"].startswith(
        f"Job `{name}` already exists and was not created for this attempt. Delete it: `kubectl delete job {name} -n "
        "default`; the stage then starts."
    )
    assert len(blocker["message"]) < MAX_WORDS + 300
    world.kube.fail.clear()
    look(world, 2)
    assert world.job("prepare")


def test_a_quota_that_wants_values_is_answered_by_setting_them(world: World) -> None:
    world.put_experiment()
    world.kube.fail["apply", "jobs"] = KubeError(403, "Forbidden", WORDS["must specify"])
    look(world)
    assert assert_lawful(world)["message"] == (
        "failed quota: q2: must specify requests.cpu for: stage. The quota needs a value for each of them: set them in "
        "spec.resources."
    )


def test_what_was_observed_is_told_beside_a_refusal(world: World) -> None:
    world.put_experiment()
    look(world)
    world.finish("prepare")
    world.kube.fail["apply", "jobs"] = KubeError(403, "Forbidden", WORDS["quota"])
    look(world)
    blocker = assert_lawful(world)
    stages = {stage["name"]: stage["state"] for stage in world.status()["stages"]}
    assert (stages["prepare"], stages["sample/a"]) == ("Succeeded", "Waiting")
    assert (world.status()["phase"], world.status()["progress"]["percent"] > 0) == ("Running", True)
    assert (blocker["reason"], blocker["stage"]) == ("QuotaExceeded", "sample/a")


def test_what_an_edit_replaces_goes_although_its_successor_is_refused_so_that_a_quota_on_jobs_has_room(
    world: World,
) -> None:
    """With count/jobs.batch: 1 the successor can only be created when the old Job is gone."""
    world.put_experiment()
    look(world)
    old = world.job("prepare")["metadata"]["name"]
    apply = world.kube.apply

    async def one_job(resource: Any, body: JsonObject) -> JsonObject:
        others = [name for (kind, _, name) in world.kube.objects if kind == JOBS and name != body["metadata"]["name"]]
        if resource == JOBS and others:
            raise KubeError(403, "Forbidden", WORDS["quota"])
        answer: JsonObject = await apply(resource, body)
        return answer

    world.kube.apply = one_job
    world.edit(prompts={"dataset": "org/others"})
    delay = look(world)
    assert_lawful(world)
    assert (JOBS, "default", old) not in world.kube.objects
    assert delay is not None
    assert delay <= 1
    look(world)
    assert world.job("prepare")["metadata"]["name"] != old
    assert world.status()["blockers"] == []


def test_a_refused_child_is_tried_alone_without_its_account_and_config(world: World) -> None:
    world.put_experiment()
    world.kube.fail["apply", "jobs"] = KubeError(403, "Forbidden", WORDS["quota"])
    look(world)
    tries = []
    for _ in range(6):
        delay = look(world)
        tries += [what for verb, what, _ in world.kube.writes() if verb == "apply"]
        assert delay is not None
        assert delay <= 60
    assert set(tries) <= {"jobs"}


def test_a_config_that_was_deleted_with_its_child_is_applied_again(world: World) -> None:
    world.put_experiment()
    look(world)
    for key in [key for key in world.kube.objects if key[0] in {CONFIG_MAPS, JOBS}]:
        world.store.delete(key[0], world.kube.objects.pop(key))
    look(world)
    assert [what for verb, what, _ in world.kube.writes() if verb == "apply"] == ["configmaps", "jobs"]


def test_in_a_namespace_that_is_being_deleted_one_try_is_made_and_no_event(world: World) -> None:
    world.put_experiment()
    ending = KubeError(
        403, "Forbidden", "unable to create", details=Details(causes=frozenset({"NamespaceTerminating"}))
    )
    world.kube.fail["apply", "serviceaccounts"] = ending
    look(world)
    blocker = assert_lawful(world)
    assert (blocker["reason"], blocker["message"]) == (
        "NamespaceTerminating",
        "Namespace `default` is being deleted, so nothing can be created in it.",
    )
    assert ("create", "events") not in [(verb, what) for verb, what, _ in world.kube.writes()]
    for _ in range(20):
        world.reconcile()
        assert world.kube.writes() == []


def test_a_refused_suspension_and_a_refused_deletion_are_told(world: World) -> None:
    world.put_experiment()
    look(world)
    world.kube.fail["patch", "jobs"] = KubeError(403, "Forbidden", "jobs is forbidden")
    world.edit(suspend=True)
    look(world)
    assert world.status()["blockers"][0]["message"] == (
        "The API server refuses the Job: jobs is forbidden. The request is retried until it is accepted."
    )
    world.kube.fail.clear()
    world.edit(suspend=False, prompts={"dataset": "org/others"})
    world.kube.fail["delete", "jobs"] = KubeError(403, "Forbidden", "jobs is forbidden")
    look(world, 2)
    assert [blocker["reason"] for blocker in world.status()["blockers"]] == ["ApiRefused"]
    world.kube.fail.clear()
    look(world, 2)
    assert world.status()["blockers"] == []


@pytest.mark.parametrize("what", [("get", "persistentvolumeclaims"), ("list", "events")])
@pytest.mark.parametrize("code", [400, 403, 500])
def test_what_only_explains_is_not_needed(world: World, what: tuple[str, str], code: int) -> None:
    world.put_experiment()
    world.kube.fail[what] = KubeError(code, "", "no")
    look(world, 2)
    assert world.status()["phase"] == "Pending"
    assert world.job("prepare")


def test_a_status_that_the_server_does_not_store_is_told_in_an_event_once(world: World) -> None:
    world.put_experiment()
    world.kube.fail["patch/status", "wrpoexperiments"] = KubeError(500, "", "etcdserver: request is too large")
    for _ in range(3):
        with pytest.raises(Exception, match="retry after"):
            world.reconcile()
    (event,) = [obj for (kind, *_), obj in world.kube.objects.items() if kind == EVENTS]
    assert (event["reason"], event["count"]) == ("StatusRefused", 1)
    assert event["message"].startswith("The API server does not store the experiment's status: etcdserver: request is ")


def test_an_experiment_that_is_gone_leaves_no_refusals_behind(world: World) -> None:
    world.put_experiment()
    world.kube.fail["apply", "jobs"] = KubeError(403, "Forbidden", "no")
    look(world)
    world.store.delete(EXPERIMENTS, world.kube.objects[EXPERIMENTS, "default", "fusion"])
    look(world)
    assert world.reconciler._refusals._entries == {}


MANIFEST = {
    "spec": {
        "template": {
            "spec": {
                "nodeSelector": {"a": "b"},
                "tolerations": [{"key": "k"}],
                "volumes": [{"name": "wrpo-tmp"}, {"name": "mine"}],
                "containers": [
                    {
                        "name": "pytorch",
                        "env": [{"name": "HOME"}, {"name": "A"}, {"name": "B"}],
                        "resources": {"requests": {"cpu": "1"}},
                        "volumeMounts": [{"name": "mine", "mountPath": "/data"}],
                    }
                ],
            }
        }
    }
}
WRITTEN = {
    "spec": {
        "volumes": [{"name": "mine"}],
        "containers": [{"name": "stage", "env": [{"name": "A"}], "volumeMounts": [{"mountPath": "/data"}]}],
    }
}
PATHS = {
    "spec.template.spec.containers[0].env[1].value": "spec.podTemplate.spec.containers[stage].env[A].value",
    "spec.template.spec.containers[0].env[2].name": "spec.env[B].name",
    '.spec.template.spec.containers[name="pytorch"].env[name="A"].value': (
        "spec.podTemplate.spec.containers[stage].env[A].value"
    ),
    "spec.template.spec.volumes[1].name": "spec.podTemplate.spec.volumes[mine].name",
    "spec.template.spec.containers[0].volumeMounts[0].mountPath": (
        "spec.podTemplate.spec.containers[stage].volumeMounts[/data].mountPath"
    ),
    "spec.template.spec.containers[0].resources.requests[cpu]": "spec.resources.requests[cpu]",
    "spec.template.spec.tolerations[0].key": "spec.scheduling.tolerations[0].key",
    "spec.template.spec.nodeSelector": "spec.scheduling.nodeSelector",
    "spec.template.spec.containers[9].name": "spec.podTemplate.spec.containers[9].name",
    "spec.template.metadata.labels": "spec.podTemplate.metadata.labels",
    "spec.backoffLimit": "spec.backoffLimit",
    "template": "template",
}
NESTED = {
    "a JobSet": ("spec.replicatedJobs[0].", {"replicatedJobs": [{"template": MANIFEST}]}),
    "a TrainJob's runtime": (
        "spec.template.spec.replicatedJobs[0].",
        {"template": {"spec": {"replicatedJobs": [{"template": MANIFEST}]}}},
    ),
    "a PyTorchJob": ("spec.pytorchReplicaSpecs[Master].", {"pytorchReplicaSpecs": {"Master": MANIFEST["spec"]}}),
}


@pytest.mark.parametrize(("path", "expected"), PATHS.items(), ids=PATHS.keys())
def test_paths_of_the_rendered_child_become_the_users(path: str, expected: str) -> None:
    text = f'Job.batch "x" is invalid: {path}: Invalid value'
    found = user_paths(text, MANIFEST, WRITTEN)
    assert found.replace("spec.podTemplate.metadata.labels.", "").startswith(f'Job.batch "x" is invalid: {expected}')


@pytest.mark.parametrize(("head", "spec"), NESTED.values(), ids=NESTED.keys())
def test_paths_of_a_template_within_a_template_become_the_users_too(head: str, spec: dict[str, Any]) -> None:
    for path, expected in PATHS.items():
        if path.startswith("spec.template."):
            inner = path if "replicatedJobs" not in head else f"template.{path}"
            text = f"x is invalid: {head}{inner.removeprefix('spec.')}: Invalid value"
            found = user_paths(text, {"spec": spec}, WRITTEN)
            assert found == f"x is invalid: {expected}: Invalid value"


def test_the_same_attempt_is_not_applied_by_looks_that_something_else_causes(world: World) -> None:
    world.put_experiment()
    world.kube.fail["apply", "jobs"] = KubeError(403, "Forbidden", WORDS["quota"])
    look(world)
    for _ in range(50):
        asyncio.run(world.reconciler.reconcile(("default", "fusion")))
    # The first try, and the one that was due a second later.
    assert len([call for call in world.kube.calls if call[:2] == ("apply", "jobs")]) == 2


@pytest.mark.parametrize(
    "said", ["the server could not find the requested resource", "404 page not found"], ids=["status", "plain"]
)
def test_a_training_kind_that_has_just_gone_is_told_as_missing(said: str) -> None:
    job = {"kind": "PyTorchJob", "metadata": {"name": "a-sft-1", "namespace": "lab"}}
    refusal = judge(KubeError(404, "NotFound", said), job, {})
    assert (refusal.object, refusal.reason, refusal.is_final) == (
        "CustomResource/PyTorchJob",
        "TrainingBackendMissing",
        False,
    )
    assert refusal.message.startswith("The cluster does not know kind PyTorchJob. Install Kubeflow's training operator")
    gone = judge(KubeError(404, "NotFound", 'namespaces "lab" not found'), job, {})
    assert gone.reason != "TrainingBackendMissing"


def test_a_training_kind_that_has_just_gone_is_left_to_the_plan_to_tell() -> None:
    refusals, experiment = RefusalStore(lambda: 0.0), make_experiment()
    job = {"kind": "PyTorchJob", "metadata": {"name": "a-sft-1", "namespace": "lab"}}
    for _ in range(5):
        refusals.record(experiment, "sft", KubeError(404, "NotFound", "404 page not found"), job)
    assert refusals.of(experiment)["sft"].object == ""
    assert refusals.due_in_s(experiment) == 16.0


def test_refusals_of_a_deleted_namesake_are_dropped() -> None:
    refusals, first = RefusalStore(lambda: 0.0), make_experiment()
    job = {"kind": "Job", "metadata": {"name": "a-sft-1", "namespace": first.namespace}}
    for number in range(50):
        experiment = replace(first, uid=f"uid-{number}")
        assert refusals.of(experiment) == {}
        refusals.record(experiment, "sft", KubeError(422, "Invalid", "spec: Invalid value"), job)
    assert len(refusals._entries) == 1
    assert list(refusals.of(experiment)) == ["sft"]
    refusals.forget((first.namespace, first.name))
    assert refusals._entries == {}
