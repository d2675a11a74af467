"""From a container's manifest to the process to start: image, environment, paths, addresses."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING

from wrpo_devcluster.client import CONFIG_MAPS, SECRETS, JsonObject, Resource
from wrpo_devcluster.controllers.base import get_or_none
from wrpo_devcluster.kubelet.containers import Launch, marker
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
from wrpo_devcluster.objects import quantity

if TYPE_CHECKING:
    from wrpo_devcluster.kubelet.podrun import PodRun

SERVICE_ACCOUNT_MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
GPU = "nvidia.com/gpu"


class NamesPending(Exception):  # noqa: N818 -- nothing is wrong yet
    """Pods that the container is told of have no address yet."""


class PullError(Exception):
    """There is no such image, as far as a container without a command needs one."""


async def plan_launch(run: PodRun, container: JsonObject, attempt: Attempt, *, names_may_wait: bool = True) -> Launch:
    """Work out what to start. Raises PullError, ConfigError or VolumeError for what stands in the way.

    Names are replaced by addresses once, at the start. In a cluster a program asks DNS again until its peers are
    there; here NamesPending is raised meanwhile. Without `names_may_wait` such a name stays as it is.
    """
    runtime, pod = run.runtime, run.handle.pod
    if container.get("restartPolicy"):
        raise ConfigError(
            f'container "{container["name"]}" sets restartPolicy (a sidecar), which pods as processes do not have; '
            "make it a container of the pod, or remove restartPolicy"
        )
    entrypoint = _entrypoint(run, container)
    base = _base_env(run, container, attempt)
    pod_now = {**pod, "status": {**(pod.get("status") or {}), "podIP": run.address}}
    declared = container_env(pod_now, container, await _sources(run, container), base)
    mounts = mount_points(container, run.volumes, {**base, **declared})
    work_dir = runtime.log_dir(run.handle.uid, container["name"]) / "cwd"
    work_dir.mkdir(parents=True, exist_ok=True)
    paths = {
        **mounts,
        (container.get("terminationMessagePath") or "/dev/termination-log"): str(attempt.termination_file),
    }
    rewrite_path = path_rewriter(paths)

    pending: list[str] = []

    def resolve(name: str) -> str | None:
        host = sibling_host(name, pod)
        if host and host == (pod["spec"].get("hostname") or run.handle.name):
            return run.address
        known = runtime.names.resolve(run.handle.namespace, name)
        if known is None and runtime.names.names_pod(name, pod):
            return run.address
        if known is None and host:
            pending.append(name)
        return known

    env = dict(base)
    if SERVICE_ACCOUNT_MOUNT in mounts and "KUBECONFIG" not in declared:
        env["KUBECONFIG"] = str(_write_kubeconfig(run, Path(mounts[SERVICE_ACCOUNT_MOUNT])))
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


def _entrypoint(run: PodRun, container: JsonObject) -> list[str] | None:
    image = container.get("image", "")
    injected = run.runtime.faults.pull_error(image)
    if injected is not None:
        raise PullError(injected)
    entrypoint = run.runtime.entrypoint(image)
    if not container.get("command") and entrypoint is None:
        known = ", ".join(sorted(run.runtime.config.images)) or "none"
        raise PullError(
            f'image "{image}" is not known here: containers run as processes of this machine, so a container needs '
            f"a command, or its image an entrypoint in the cluster's configuration (known images: {known})"
        )
    return entrypoint


def _base_env(run: PodRun, container: JsonObject, attempt: Attempt) -> dict[str, str]:
    runtime = run.runtime
    home = run.directory / "home"
    home.mkdir(exist_ok=True, mode=0o700)
    env = dict(runtime.config.environment)
    env["PATH"] = f"{env.get('PATH', '/usr/local/bin:/usr/bin:/bin')}:{runtime.tools_dir}"
    env |= {
        "HOME": str(home),
        "HOSTNAME": run.handle.pod["spec"].get("hostname") or run.handle.name,
        "KUBERNETES_SERVICE_HOST": runtime.api.host,
        "KUBERNETES_SERVICE_PORT": str(runtime.api.port),
        "WRPO_DEVCLUSTER_HOSTS": str(runtime.names.hosts_file(run.handle.namespace)),
        MARKER: marker(attempt),
    }
    threads = thread_limit(container)
    if threads is not None:
        env["OMP_NUM_THREADS"] = threads
    gpus = int(quantity(((container.get("resources") or {}).get("limits") or {}).get(GPU, 0)))
    devices = runtime.assign_gpus(run.handle.uid, gpus) if gpus else []
    # A container sees the devices it asked for, and no others.
    env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
    return env


async def _sources(run: PodRun, container: JsonObject) -> Sources:
    config_maps, secrets = referenced(container)
    return Sources(
        config_maps={name: await _data(run, CONFIG_MAPS, name) for name in config_maps},
        secrets={name: await _data(run, SECRETS, name) for name in secrets},
    )


async def _data(run: PodRun, resource: Resource, name: str) -> dict[str, str] | None:
    found = await get_or_none(run.runtime.client, resource, name, run.handle.namespace)
    if found is None:
        return None
    data = found.get("data") or {}
    if resource is SECRETS:
        return {key: base64.b64decode(value).decode(errors="surrogateescape") for key, value in data.items()}
    return dict(data)


def _write_kubeconfig(run: PodRun, mount: Path) -> Path:
    """Clients look for the token at a fixed path that only a mount namespace can offer; this says where it is."""
    api = run.runtime.api
    path = run.directory / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "dev", "cluster": {"server": api.url, "certificate-authority": str(mount / "ca.crt")}}],
        "users": [{"name": "pod", "user": {"tokenFile": str(mount / "token")}}],
        "contexts": [{"name": "pod", "context": {"cluster": "dev", "user": "pod", "namespace": run.handle.namespace}}],
        "current-context": "pod",
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(config), encoding="utf-8")
    return path
