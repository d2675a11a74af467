"""No accepted pod template gives a pod that leaves the restricted pod security standard, whatever the policy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builders import make_experiment, make_planned

from wrpo_devcluster.apiserver.admission.podsecurity import violations
from wrpo_operator.api.parsing import SpecError
from wrpo_operator.api.pod_template import STRICT, PodTemplatePolicy, protected_field_errors
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.plan.model import Experiment
from wrpo_operator.render import render_attempt
from wrpo_operator.render.pod import ChildRequest, pod_template
from wrpo_operator.render.settings import RenderSettings

BOOLEANS = st.sampled_from([True, False])
PROFILES = st.sampled_from(
    [{"type": "RuntimeDefault"}, {"type": "Localhost"}, {"type": "Unconfined"}, {}, "Unconfined"]
)
USERS = st.sampled_from([0, 1, 1000, 65532])
CONTEXT = st.fixed_dictionaries(
    {},
    optional={
        "privileged": BOOLEANS,
        "allowPrivilegeEscalation": BOOLEANS,
        "readOnlyRootFilesystem": BOOLEANS,
        "runAsNonRoot": BOOLEANS,
        "runAsUser": USERS,
        "runAsGroup": USERS,
        "fsGroup": USERS,
        "capabilities": st.sampled_from([{"add": ["SYS_ADMIN"]}, {"drop": []}, {"drop": ["ALL"]}, {}]),
        "seccompProfile": PROFILES,
        "appArmorProfile": PROFILES,
        "seLinuxOptions": st.sampled_from([{"type": "spc_t"}, {"type": "container_t"}, {"user": "system_u"}]),
        "procMount": st.sampled_from(["Default", "Unmasked"]),
        "sysctls": st.just([{"name": "kernel.msgmax", "value": "1"}]),
        "windowsOptions": st.just({"hostProcess": True}),
    },
)
CONTEXTS: st.SearchStrategy[Any] = CONTEXT | st.sampled_from([None, [], "privileged"])
PORTS = st.lists(st.sampled_from([{"containerPort": 80}, {"containerPort": 80, "hostPort": 80}]), max_size=2)
CONTAINER = st.fixed_dictionaries(
    {"name": st.sampled_from(["stage", "stage", "side", "pytorch"])},
    optional={
        "securityContext": CONTEXTS,
        "ports": PORTS,
        "image": st.just("a"),
        "command": st.just(["sh"]),
        "livenessProbe": st.sampled_from([{"httpGet": {"host": "10.0.0.1"}}, {"httpGet": {"port": 1}}]),
        "volumeMounts": st.lists(st.sampled_from([{"name": "v", "mountPath": "/v"}, {"mountPath": "/etc/wrpo"}, "x"])),
    },
)
CONTAINERS = st.lists(CONTAINER | st.sampled_from([{}, {"securityContext": {"privileged": True}}, "x"]), max_size=3)
VOLUME = st.sampled_from(
    [
        {"name": "v", "emptyDir": {}},
        {"name": "v", "hostPath": {"path": "/"}},
        {"name": "v", "nfs": {"server": "a", "path": "/"}},
        {"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}},
        {"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}},
        {"name": "v", "projected": {"sources": [{"configMap": {"name": "a"}}]}},
        {"name": "wrpo-config", "hostPath": {"path": "/"}},
        {"name": "v", "secret": {"secretName": "a"}},
    ]
)
POD = st.fixed_dictionaries(
    {},
    optional={
        "securityContext": CONTEXTS,
        "containers": CONTAINERS,
        "initContainers": CONTAINERS,
        "volumes": st.lists(VOLUME, max_size=2),
        **dict.fromkeys(("hostNetwork", "hostPID", "hostIPC", "hostUsers", "automountServiceAccountToken"), BOOLEANS),
        "serviceAccountName": st.just("admin"),
        "os": st.just({"name": "windows"}),
        "runtimeClassName": st.just("nvidia"),
    },
)


def rendered(experiment: Experiment, template: dict[str, Any], stage: str) -> dict[str, Any]:
    assert experiment.spec is not None
    spec = experiment.spec.model_copy(update={"pod_template": template})
    planned = make_planned(experiment, stage)
    request = ChildRequest(experiment, spec, planned, RenderSettings(progress_url="https://a:1"), "config")
    return pod_template(request)


EXPERIMENT = make_experiment()


@settings(max_examples=400)
@given(POD, BOOLEANS, st.sampled_from(["prepare", "train"]))
def test_what_is_accepted_is_restricted(pod: dict[str, Any], lenient: bool, stage: str) -> None:
    policy = PodTemplatePolicy(allow_security_overrides=True) if lenient else STRICT
    template = {"spec": pod}
    if protected_field_errors(template, policy):
        return
    result = rendered(EXPERIMENT, template, stage)["spec"]
    assert violations("restricted", result, {}) == []
    assert (result["serviceAccountName"], result["automountServiceAccountToken"]) == ("wrpo-stage", False)
    assert [container["name"] for container in result["containers"]] == ["stage"]
    everything = [*result["containers"], *result.get("initContainers", [])]
    assert not [container for container in everything if container.get("ports")]
    assert not any((container.get("livenessProbe") or {}).get("httpGet", {}).get("host") for container in everything)
    contexts = [result["securityContext"], *(container["securityContext"] for container in everything)]
    assert all(
        (context.get("appArmorProfile") or {"type": "RuntimeDefault"})["type"] != "Unconfined" for context in contexts
    )
    tokens = [volume for volume in result["volumes"] if "serviceAccountToken" in str(volume)]
    assert [volume["name"] for volume in tokens] == ["wrpo-progress-token"]
    if not lenient:
        for container in everything:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"].get("seccompProfile", {"type": "RuntimeDefault"}) == {
                "type": "RuntimeDefault"
            }


def test_the_property_sees_accepted_templates_that_change_something() -> None:
    template = {"spec": {"initContainers": [{"name": "side", "image": "a", "securityContext": {"runAsUser": 1000}}]}}
    assert protected_field_errors(template) == ()
    (init,) = rendered(EXPERIMENT, template, "train")["spec"]["initContainers"]
    assert init["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert init["securityContext"]["runAsUser"] == 1000


HOSTILE = "$(touch x); `id` && $HOME | cat"


def test_what_users_write_reaches_no_shell() -> None:
    """Commands are lists without a shell, and hold nothing of the spec; a user's words lie in a JSON file."""
    refusals: list[dict[str, Any]] = [{"target": {"model": f"/models/{HOSTILE}"}}, {"images": {"trainer": HOSTILE}}]
    for refused in refusals:
        with pytest.raises(SpecError):
            make_experiment(**refused)
    experiment = make_experiment(prompts={"column": HOSTILE}, env=[{"name": "A", "value": HOSTILE}])
    assert experiment.spec is not None
    for node in build_graph(experiment.spec):
        stage = str(node.id)
        config, *children = render_attempt(experiment, make_planned(experiment, stage), RenderSettings())
        assert json.loads(config["data"]["stage.json"])["params"]
        for container in _containers(children):
            command = [*container.get("command", []), *container.get("args", [])]
            assert isinstance(container["command"], list)
            assert not {"sh", "bash", "-c", "/bin/sh"} & set(command)
            assert not [part for part in command if "$" in part or "`" in part or "touch" in part]


def _containers(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        if "image" in part and "command" in part:
            yield part
        for value in part.values():
            yield from _containers(value)
    elif isinstance(part, list | tuple):
        for value in part:
            yield from _containers(value)
