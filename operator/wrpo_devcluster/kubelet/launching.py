"""Launch plan: from a container's manifest to the process, with environment, paths and addresses."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from wrpo_devcluster import quantity
from wrpo_devcluster.client import CONFIG_MAPS, SECRETS, JsonObject, Resource
from wrpo_devcluster.controllers.base import get_or_none
from wrpo_devcluster.kubelet.containers import Launch, marker
from wrpo_devcluster.kubelet.context import PodContext
from wrpo_devcluster.kubelet.environment import (
    ConfigError,
    Sources,
    command_line,
    container_env,
    referenced,
    thread_limit,
)
from wrpo_devcluster.kubelet.names import sibling_host
from wrpo_devcluster.kubelet.records import MARKER, Attempt
from wrpo_devcluster.kubelet.rewriting import path_rewriter, rewrite_hosts
from wrpo_devcluster.kubelet.volumes import mount_points

SERVICE_ACCOUNT_MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
GPU = "nvidia.com/gpu"


class NamesPending(Exception):  # noqa: N818 -- nothing is wrong yet
    """Pods that the container's manifest names have no address yet."""


class PullError(Exception):
    """The image is unknown, and the container has no command."""


async def plan_launch(
    context: PodContext, container: JsonObject, attempt: Attempt, *, names_may_wait: bool = True
) -> Launch:
    """Return the process to start. Raises PullError, ConfigError or VolumeError if it cannot start.

    Names are replaced by addresses once, at the start. In a cluster a program asks DNS again until its peers are
    there; here NamesPending is raised meanwhile. Without `names_may_wait` such a name stays as it is.
    """
    node, pod = context.node, context.handle.pod
    if container.get("restartPolicy"):
        raise ConfigError(
            f'container "{container["name"]}" sets restartPolicy (a sidecar), which pods as processes do not have; '
            "make it a container of the pod, or remove restartPolicy"
        )
    entrypoint = _entrypoint(context, container)
    base = _base_env(context, container, attempt)
    pod_now = {**pod, "status": {**(pod.get("status") or {}), "podIP": context.address}}
    declared = container_env(pod_now, container, await _sources(context, container), base)
    mounts = mount_points(container, context.volumes, {**base, **declared})
    work_dir = context.log_dir(container["name"]) / "cwd"
    work_dir.mkdir(parents=True, exist_ok=True)
    paths = {
        **mounts,
        (container.get("terminationMessagePath") or "/dev/termination-log"): str(attempt.termination_file),
    }
    rewrite_path = path_rewriter(paths)

    pending: list[str] = []

    def resolve(name: str) -> str | None:
        host = sibling_host(name, pod)
        if host and host == (pod["spec"].get("hostname") or context.handle.name):
            return context.address
        known = node.names.resolve(context.handle.namespace, name)
        if known is None and node.names.names_pod(name, pod):
            return context.address
        if known is None and host:
            pending.append(name)
        return known

    env = dict(base)
    if SERVICE_ACCOUNT_MOUNT in mounts and "KUBECONFIG" not in declared:
        env["KUBECONFIG"] = str(_write_kubeconfig(context, Path(mounts[SERVICE_ACCOUNT_MOUNT])))
    for name, value in declared.items():
        env[name] = rewrite_hosts(rewrite_path(value), resolve, allow_bare=True)
    if "PATH" in declared:
        # An image's PATH would hide this machine's interpreter.
        env["PATH"] = f"{base['PATH']}:{env['PATH']}"
    argv = command_line(container, entrypoint, {**base, **declared})
    argv = [argv[0], *(rewrite_hosts(rewrite_path(part), resolve, allow_bare=False) for part in argv[1:])]
    argv[0] = rewrite_path(argv[0])
    if pending and names_may_wait:
        raise NamesPending(", ".join(dict.fromkeys(pending)))
    wanted = Path(rewrite_path(container.get("workingDir") or ""))
    cwd = wanted if container.get("workingDir") and wanted.is_dir() else work_dir
    return Launch(argv=argv, env=env, cwd=cwd)


def _entrypoint(context: PodContext, container: JsonObject) -> list[str] | None:
    image = container.get("image", "")
    injected = context.node.faults.pull_error(image)
    if injected is not None:
        raise PullError(injected)
    entrypoint = context.node.entrypoint(image)
    if not container.get("command") and entrypoint is None:
        known = ", ".join(sorted(context.node.config.images)) or "none"
        raise PullError(
            f'image "{image}" is unknown: containers run as processes of this machine, so a container needs '
            f"a command, or its image an entrypoint in the cluster's configuration (known images: {known})"
        )
    return entrypoint


def _base_env(context: PodContext, container: JsonObject, attempt: Attempt) -> dict[str, str]:
    node = context.node
    home = context.directory / "home"
    home.mkdir(exist_ok=True, mode=0o700)
    env = node.config.container_environment(node.tools_dir) | {
        "HOME": str(home),
        "HOSTNAME": context.handle.pod["spec"].get("hostname") or context.handle.name,
        "KUBERNETES_SERVICE_HOST": node.api.host,
        "KUBERNETES_SERVICE_PORT": str(node.api.port),
        "WRPO_DEVCLUSTER_HOSTS": str(node.names.hosts_file(context.handle.namespace)),
        MARKER: marker(attempt),
    }
    threads = thread_limit(container)
    if threads is not None:
        env["OMP_NUM_THREADS"] = threads
    gpus = int(quantity.parse(((container.get("resources") or {}).get("limits") or {}).get(GPU, 0)))
    devices = node.devices.assign(context.handle.uid, gpus) if gpus else []
    # A container sees the devices it asked for, and no others.
    env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
    return env


async def _sources(context: PodContext, container: JsonObject) -> Sources:
    config_maps, secrets = referenced(container)
    return Sources(
        config_maps={name: await _data(context, CONFIG_MAPS, name) for name in config_maps},
        secrets={name: await _data(context, SECRETS, name) for name in secrets},
    )


async def _data(context: PodContext, resource: Resource, name: str) -> dict[str, str] | None:
    found = await get_or_none(context.node.client, resource, name, context.handle.namespace)
    if found is None:
        return None
    data = found.get("data") or {}
    if resource is SECRETS:
        return {key: base64.b64decode(value).decode(errors="surrogateescape") for key, value in data.items()}
    return dict(data)


def _write_kubeconfig(context: PodContext, mount: Path) -> Path:
    """Write a kubeconfig with the token's path, because clients expect a fixed path that needs a mount namespace."""
    api = context.node.api
    path = context.directory / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "dev", "cluster": {"server": api.url, "certificate-authority": str(mount / "ca.crt")}}],
        "users": [{"name": "pod", "user": {"tokenFile": str(mount / "token")}}],
        "contexts": [
            {"name": "pod", "context": {"cluster": "dev", "user": "pod", "namespace": context.handle.namespace}}
        ],
        "current-context": "pod",
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(config), encoding="utf-8")
    return path
