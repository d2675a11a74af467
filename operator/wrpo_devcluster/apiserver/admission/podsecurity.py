"""Pod Security Standards `baseline` and `restricted`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from wrpo_devcluster.client import JsonObject

ENFORCE = "pod-security.kubernetes.io/enforce"
WARN = "pod-security.kubernetes.io/warn"
_BASELINE_CAPABILITIES = {
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP",
    "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}  # fmt: skip
_RESTRICTED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
_SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
}  # fmt: skip


def _containers(spec: JsonObject) -> Iterator[JsonObject]:
    for group in ("initContainers", "containers", "ephemeralContainers"):
        yield from spec.get(group) or ()


def _context(container: JsonObject) -> JsonObject:
    found: JsonObject = container.get("securityContext") or {}
    return found


def _named(names: list[str]) -> str:
    quoted = ", ".join(f'"{name}"' for name in names)
    return f"container {quoted}" if len(names) == 1 else f"containers {quoted}"


def _failing(spec: JsonObject, bad: Any) -> list[str]:
    return [container.get("name", "") for container in _containers(spec) if bad(_context(container), container)]


def violations(level: str, spec: JsonObject, meta: JsonObject) -> list[str]:
    """Return what violates `level` in a pod, in the real server's wording."""
    if level == "privileged":
        return []
    found = _baseline(spec, meta)
    return found + _restricted(spec) if level == "restricted" else found


def _baseline(spec: JsonObject, meta: JsonObject) -> list[str]:
    found: list[str] = []
    namespaces = [f"{name}=true" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    if namespaces:
        found.append(f"host namespaces ({', '.join(namespaces)})")
    if names := _failing(spec, lambda context, _: context.get("privileged")):
        found.append(f"privileged ({_named(names)} must not set securityContext.privileged=true)")
    names = _failing(
        spec, lambda context, _: set((context.get("capabilities") or {}).get("add") or ()) - _BASELINE_CAPABILITIES
    )
    if names:
        found.append(
            f"non-default capabilities ({_named(names)} must not include forbidden values in securityContext.capabilities.add)"  # noqa: E501
        )
    paths = [f'"{volume["name"]}"' for volume in spec.get("volumes") or () if "hostPath" in volume]
    if paths:
        found.append(f"hostPath volumes (volume{'s' if len(paths) > 1 else ''} {', '.join(paths)})")
    if names := _failing(spec, lambda _, container: any(port.get("hostPort") for port in container.get("ports") or ())):
        found.append(f"hostPort ({_named(names)} uses hostPort)")
    profiles = [spec.get("securityContext") or {}, *map(_context, _containers(spec))]
    if any((profile.get("seccompProfile") or {}).get("type") == "Unconfined" for profile in profiles):
        found.append(
            'seccompProfile (pod or container must not set securityContext.seccompProfile.type to "Unconfined")'
        )
    unsafe = [
        sysctl.get("name", "")
        for sysctl in (spec.get("securityContext") or {}).get("sysctls") or ()
        if sysctl.get("name") not in _SAFE_SYSCTLS
    ]
    if unsafe:
        found.append(f"forbidden sysctls ({', '.join(unsafe)})")
    if any((profile.get("procMount") or "Default") != "Default" for profile in profiles):
        found.append('procMount (containers must not set securityContext.procMount other than "Default")')
    if any((profile.get("windowsOptions") or {}).get("hostProcess") for profile in profiles):
        found.append("hostProcess (pod or container must not set securityContext.windowsOptions.hostProcess=true)")
    _ = meta
    return found


def _restricted(spec: JsonObject) -> list[str]:
    found: list[str] = []
    pod = spec.get("securityContext") or {}
    if names := _failing(spec, lambda context, _: context.get("allowPrivilegeEscalation") is not False):
        found.append(
            f"allowPrivilegeEscalation != false ({_named(names)} must set securityContext.allowPrivilegeEscalation=false)"  # noqa: E501
        )
    found += _capabilities(spec)
    volumes = [
        volume["name"] for volume in spec.get("volumes") or () if not set(volume) - {"name"} <= _RESTRICTED_VOLUMES
    ]
    if volumes:
        listed = ", ".join(f'"{name}"' for name in volumes)
        found.append(f"restricted volume types (volume{'s' if len(volumes) > 1 else ''} {listed})")

    def may_be_root(context: JsonObject, _: JsonObject) -> bool:
        return context.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True

    if names := _failing(spec, may_be_root):
        found.append(f"runAsNonRoot != true (pod or {_named(names)} must set securityContext.runAsNonRoot=true)")
    root = [name for name, user in [("pod", pod.get("runAsUser"))] if user == 0]
    root += _failing(spec, lambda context, _: context.get("runAsUser") == 0)
    if root:
        found.append("runAsUser=0 (pod or containers must not set runAsUser=0)")

    def unconfined(context: JsonObject, _: JsonObject) -> bool:
        profile = context.get("seccompProfile") or pod.get("seccompProfile") or {}
        return profile.get("type") not in {"RuntimeDefault", "Localhost"}

    if names := _failing(spec, unconfined):
        found.append(
            f"seccompProfile (pod or {_named(names)} must set securityContext.seccompProfile.type to"
            ' "RuntimeDefault" or "Localhost")'
        )
    return found


def _capabilities(spec: JsonObject) -> list[str]:
    keeping = _failing(spec, lambda context, _: "ALL" not in ((context.get("capabilities") or {}).get("drop") or ()))
    adding = _failing(
        spec, lambda context, _: set((context.get("capabilities") or {}).get("add") or ()) - {"NET_BIND_SERVICE"}
    )
    parts = []
    if keeping:
        parts.append(f'{_named(keeping)} must set securityContext.capabilities.drop=["ALL"]')
    if adding:
        parts.append(
            f"{_named(adding)} must not include values other than NET_BIND_SERVICE in securityContext.capabilities.add"
        )
    return [f"unrestricted capabilities ({'; '.join(parts)})"] if parts else []
