"""Which pod templates are refused."""

from __future__ import annotations

from typing import Any

import pytest

from wrpo_operator.api.pod_template import PodTemplatePolicy, protected_field_errors

SPEC = "spec.podTemplate.spec"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another service account": (
        {"serviceAccountName": "admin"},
        f"{SPEC}.serviceAccountName belongs to the operator. Remove it."),
    "an API token": (
        {"automountServiceAccountToken": True},
        f"{SPEC}.automountServiceAccountToken belongs to the operator. Remove it."),
    "the host's network": ({"hostNetwork": True}, f"{SPEC}.hostNetwork belongs to the operator. Remove it."),
    "restarts": ({"restartPolicy": "OnFailure"}, f"{SPEC}.restartPolicy belongs to the operator. Remove it."),
    "another command": (
        {"containers": [{"name": "stage", "command": ["sh"]}]},
        f"{SPEC}.containers[stage].command belongs to the operator. Remove it."),
    "a second container": (
        {"containers": [{"name": "side"}]},
        (f"{SPEC}.containers[side] is refused: a second container would keep the stage from completing. Change "
        "container `stage`, or add an init container.")),
    "a privileged init container": (
        {"initContainers": [{"name": "a", "securityContext": {"privileged": True}}]},
        f"{SPEC}.initContainers[a].securityContext.privileged is refused: stages run restricted. Remove it."),
    "root": (
        {"securityContext": {"runAsUser": 0}},
        (f"{SPEC}.securityContext requests root: stages run as a non-root user. Set runAsUser to another number or "
        "remove it.")),
    "more capabilities": (
        {"containers": [{"name": "stage", "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}]},
        f"{SPEC}.containers[stage].securityContext.capabilities is refused: stages run restricted. Remove it."),
    "the node's files": (
        {"volumes": [{"name": "host", "hostPath": {"path": "/"}}]},
        f"{SPEC}.volumes[host].hostPath is refused: stages run restricted. Use a claim."),
    "the config volume": (
        {"volumes": [{"name": "wrpo-config", "emptyDir": {}}]},
        f"{SPEC}.volumes[wrpo-config] belongs to the operator. Remove it."),
    "the config's mount": (
        {"containers": [{"name": "stage", "volumeMounts": [{"name": "x", "mountPath": "/etc/wrpo/"}]}]},
        f"{SPEC}.containers[stage].volumeMounts[/etc/wrpo] belongs to the operator. Remove it."),
    "a variable of the stages": (
        {"containers": [{"name": "stage", "env": [{"name": "WRPO_VOLUME_ROOT", "value": "/"}]}]},
        f"{SPEC}.containers[stage].env[WRPO_VOLUME_ROOT] belongs to the operator. Remove it."),
    "a deletion by directive": (
        {"containers": [{"name": "stage", "$patch": "delete"}]},
        f"{SPEC}.containers[0].$patch is refused: a template may add and change, but not delete. Remove it."),
    "a security context removed": (
        {"securityContext": None},
        f"{SPEC}.securityContext is refused: a template may add and change, but not delete. Remove it.",
    ),
    "no capabilities dropped": (
        {"containers": [{"name": "stage", "securityContext": {"capabilities": {"drop": []}}}]},
        f"{SPEC}.containers[stage].securityContext.capabilities is refused: stages run restricted. Remove it.",
    ),
    "an unconfined system call filter": (
        {"securityContext": {"seccompProfile": {"type": "Unconfined"}}},
        f"{SPEC}.securityContext.seccompProfile is refused: stages run restricted. Remove it.",
    ),
    "another way to write the config's mount": (
        {"containers": [{"name": "stage", "volumeMounts": [{"name": "x", "mountPath": "/etc/a/../wrpo"}]}]},
        f"{SPEC}.containers[stage].volumeMounts[/etc/wrpo] belongs to the operator. Remove it.",
    ),
    "containers as a map": ({"containers": {"stage": {}}}, f"{SPEC}.containers must be a list."),
}  # fmt: skip


@pytest.mark.parametrize(("pod", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_is_refused(pod: dict[str, Any], message: str) -> None:
    assert protected_field_errors({"spec": pod}) == (message,)


def test_our_labels_are_refused() -> None:
    template = {"metadata": {"labels": {"wrpo.ai/stage": "x", "team": "a"}}}
    assert protected_field_errors(template) == (
        "spec.podTemplate.metadata.labels[wrpo.ai/stage] belongs to the operator. Remove it.",
    )


def test_other_parts_are_refused() -> None:
    assert protected_field_errors({"kind": "Pod", "metadata": {"name": "x"}}) == (
        "spec.podTemplate.kind is not part of a pod template. Only metadata and spec are.",
        "spec.podTemplate.metadata.name cannot be set. Only labels and annotations can.",
    )


def test_useful_changes_are_accepted() -> None:
    template = {
        "metadata": {"labels": {"team": "a"}, "annotations": {"sidecar.istio.io/inject": "false"}},
        "spec": {
            "securityContext": {"runAsUser": 1000, "fsGroup": 1000},
            "affinity": {"nodeAffinity": {}},
            "runtimeClassName": "nvidia",
            "volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "cache"}}],
            "initContainers": [{"name": "fetch", "image": "busybox"}],
            "containers": [
                {"name": "stage", "env": [{"name": "NCCL_DEBUG", "value": "INFO"}],
                 "volumeMounts": [{"name": "cache", "mountPath": "/cache"}]},
            ],
        },
    }  # fmt: skip
    assert protected_field_errors(template) == ()


LIFTED: dict[str, dict[str, Any]] = {
    "a writable root": {"readOnlyRootFilesystem": False},
    "another call filter": {"seccompProfile": {"type": "Localhost", "localhostProfile": "a.json"}},
    "another AppArmor profile": {"appArmorProfile": {"type": "Localhost", "localhostProfile": "a"}},
    "an SELinux type": {"seLinuxOptions": {"type": "container_init_t"}},
}


@pytest.mark.parametrize("context", LIFTED.values(), ids=LIFTED.keys())
def test_lifting_a_setting_needs_the_administrators_leave(context: dict[str, Any]) -> None:
    template = {"spec": {"containers": [{"name": "stage", "securityContext": context}]}}
    (refusal,) = protected_field_errors(template)
    assert f"{SPEC}.containers[stage].securityContext.{next(iter(context))} is refused" in refusal
    assert "podTemplatePolicy.allowSecurityOverrides" in refusal
    assert protected_field_errors(template, PodTemplatePolicy(allow_security_overrides=True)) == ()


NEVER: dict[str, dict[str, Any]] = {
    "host network": {"hostNetwork": True},
    "host processes": {"hostPID": True},
    "host IPC": {"hostIPC": True},
    "the node's files": {"volumes": [{"name": "a", "hostPath": {"path": "/"}}]},
    "a token volume": {"volumes": [{"name": "a", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]},
    "an account": {"serviceAccountName": "admin"},
    "an account by its old name": {"serviceAccount": "admin"},
    "an API token": {"automountServiceAccountToken": True},
    "privileged": {"containers": [{"name": "stage", "securityContext": {"privileged": True}}]},
    "a host port": {"initContainers": [{"name": "a", "ports": [{"containerPort": 1, "hostPort": 1}]}]},
    "a capability": {"initContainers": [{"name": "a", "securityContext": {"capabilities": {"add": ["NET_RAW"]}}}]},
    "root allowed": {"securityContext": {"runAsNonRoot": False}},
    "root": {"initContainers": [{"name": "a", "securityContext": {"runAsUser": 0}}]},
    "no call filter": {
        "containers": [{"name": "stage", "securityContext": {"seccompProfile": {"type": "Unconfined"}}}]
    },
    "no AppArmor": {"securityContext": {"appArmorProfile": {"type": "Unconfined"}}},
    "another SELinux user": {"securityContext": {"seLinuxOptions": {"user": "system_u"}}},
    "kernel parameters": {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}},
    "another system": {"os": {"name": "windows"}},
    "a probe of another host": {"containers": [{"name": "stage", "livenessProbe": {"httpGet": {"host": "10.0.0.1"}}}]},
    "a container that is no object": {"containers": [["name", "side"]]},
    "a context that is no object": {"securityContext": ["runAsUser"]},
    "the config's mount behind two slashes": {
        "containers": [{"name": "stage", "volumeMounts": [{"name": "x", "mountPath": "//etc/wrpo"}]}]
    },
    "the config's mount without a slash": {
        "containers": [{"name": "stage", "volumeMounts": [{"name": "x", "mountPath": "etc/wrpo"}]}]
    },
}


@pytest.mark.parametrize("pod", NEVER.values(), ids=NEVER.keys())
def test_is_refused_whatever_the_policy(pod: dict[str, Any]) -> None:
    assert len(protected_field_errors({"spec": pod}, PodTemplatePolicy(allow_security_overrides=True))) == 1


def test_an_older_profile_annotation_is_refused() -> None:
    key = "container.apparmor.security.beta.kubernetes.io/stage"
    assert protected_field_errors({"metadata": {"annotations": {key: "unconfined"}}}) == (
        f"spec.podTemplate.metadata.annotations[{key}] is refused: stages run restricted. Remove it.",
    )
