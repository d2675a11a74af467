"""Volumes of a pod as directories below the state directory, with contents that are kept up to date."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from wrpo_devcluster.client import CLAIMS, CONFIG_MAPS, SECRETS, Client, JsonObject
from wrpo_devcluster.clock import Clock
from wrpo_devcluster.controllers.base import get_or_none
from wrpo_devcluster.controllers.volumes import claim_directory
from wrpo_devcluster.kubelet.environment import field_value, resource_value


class VolumeError(Exception):
    """A volume cannot be set up yet; the message is the kubelet's."""


class TokenIssuer(Protocol):
    """`Tokens.issue` of the API server."""

    def __call__(
        self,
        namespace: str,
        service_account: str,
        *,
        audiences: Sequence[str],
        expires_s: int,
        pod: tuple[str, str] | None,
    ) -> str:
        """Return a token bound to a pod (name, uid); no audiences means the API server's own."""
        ...


@dataclass(frozen=True, slots=True)
class File:
    """A file of a volume that the kubelet writes."""

    content: bytes
    mode: int = 0o644


@dataclass(slots=True)
class _Token:
    text: str
    renew_at: datetime


@dataclass(slots=True)
class VolumeManager:
    """Sets up the volumes of one pod; call `prepare` again to refresh contents and tokens."""

    client: Client
    clock: Clock
    pod: JsonObject
    root: Path
    state_dir: Path
    issue_token: TokenIssuer
    allow_host_path: bool = False
    _tokens: dict[tuple[str, str], _Token] = field(default_factory=dict)

    async def prepare(self) -> dict[str, Path]:
        """Return the directory of every volume, by name."""
        result: dict[str, Path] = {}
        for volume in self.pod["spec"].get("volumes") or []:
            result[volume["name"]] = await self._one(volume)
        return result

    async def _one(self, volume: JsonObject) -> Path:
        name = volume["name"]
        directory: Path = self.root / name
        if "emptyDir" in volume:
            directory.mkdir(parents=True, exist_ok=True)
            return directory
        if "persistentVolumeClaim" in volume:
            return await self._claim(volume["persistentVolumeClaim"]["claimName"])
        if "hostPath" in volume:
            if not self.allow_host_path:
                raise VolumeError(
                    f'volume "{name}": hostPath is refused by this control plane; start it with --allow-host-path'
                )
            return Path(volume["hostPath"]["path"])
        sources = (volume["projected"].get("sources") or []) if "projected" in volume else [volume]
        mode = int((volume.get("projected") or {}).get("defaultMode") or 0o644)
        files: dict[str, File] = {}
        for source in sources:
            files |= await self._files(name, source, mode)
        write_files(directory, files)
        return directory

    async def _claim(self, claim: str) -> Path:
        namespace = self.pod["metadata"]["namespace"]
        if await get_or_none(self.client, CLAIMS, claim, namespace) is None:
            raise VolumeError(f'persistentvolumeclaim "{claim}" not found')
        directory: Path = claim_directory(self.state_dir, namespace, claim)
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    async def _files(self, volume: str, source: JsonObject, mode: int) -> dict[str, File]:
        if "configMap" in source:
            wanted = source["configMap"]
            data = await self._data(CONFIG_MAPS.plural, wanted["name"])
            return select_items(f'configmap "{wanted["name"]}"', data, wanted, mode)
        if "secret" in source:
            wanted = source["secret"]
            name = wanted.get("secretName") or wanted.get("name")
            return select_items(f'secret "{name}"', await self._data(SECRETS.plural, name), wanted, mode)
        if "downwardAPI" in source:
            return {item["path"]: File(self._downward(item), mode) for item in source["downwardAPI"].get("items") or []}
        if "serviceAccountToken" in source:
            wanted = source["serviceAccountToken"]
            return {wanted["path"]: File(self._token(wanted).encode(), 0o600)}
        kinds = sorted(set(source) - {"name"})
        raise VolumeError(
            f'volume "{volume}" is of a kind that the embedded cluster does not support: {", ".join(kinds)}'
        )

    async def _data(self, plural: str, name: str) -> dict[str, bytes] | None:
        resource = CONFIG_MAPS if plural == CONFIG_MAPS.plural else SECRETS
        found = await get_or_none(self.client, resource, name, self.pod["metadata"]["namespace"])
        if found is None:
            return None
        if resource is SECRETS:
            return {k: base64.b64decode(v) for k, v in (found.get("data") or {}).items()}
        binary = {k: base64.b64decode(v) for k, v in (found.get("binaryData") or {}).items()}
        return {k: v.encode() for k, v in (found.get("data") or {}).items()} | binary

    def _downward(self, item: JsonObject) -> bytes:
        if "fieldRef" in item:
            return field_value(self.pod, item["fieldRef"]["fieldPath"]).encode()
        reference = item["resourceFieldRef"]
        return resource_value(self.pod, self.pod["spec"]["containers"][0], reference).encode()

    def _token(self, wanted: JsonObject) -> str:
        """Return a token that is valid for at least a fifth of its life."""
        audience = wanted.get("audience") or ""
        expires_s = int(wanted.get("expirationSeconds") or 3600)
        key = (audience, wanted["path"])
        known = self._tokens.get(key)
        now = self.clock.now()
        if known is None or now >= known.renew_at:
            meta = self.pod["metadata"]
            text = self.issue_token(
                meta["namespace"],
                self.pod["spec"].get("serviceAccountName") or "default",
                audiences=[audience] if audience else [],
                expires_s=expires_s,
                pod=(meta["name"], meta["uid"]),
            )
            known = _Token(text, now + timedelta(seconds=expires_s * 0.8))
            self._tokens[key] = known
        return known.text


def select_items(what: str, data: Mapping[str, bytes] | None, source: JsonObject, default_mode: int) -> dict[str, File]:
    """Return the files of a ConfigMap or Secret: all keys, or those that `items` names."""
    mode = int(source.get("defaultMode") or default_mode)
    if data is None:
        if source.get("optional"):
            return {}
        raise VolumeError(f"{what} not found")
    if not source.get("items"):
        return {name: File(content, mode) for name, content in data.items()}
    files: dict[str, File] = {}
    for item in source["items"]:
        if item["key"] not in data:
            if source.get("optional"):
                continue
            raise VolumeError(f"{what}: references non-existent config key: {item['key']}")
        files[item["path"]] = File(data[item["key"]], int(item.get("mode") or mode))
    return files


def write_files(directory: Path, files: Mapping[str, File]) -> None:
    """Make the directory hold exactly these files; each is replaced whole, and only when it differs."""
    directory.mkdir(parents=True, exist_ok=True)
    wanted = {directory / name for name in files}
    for existing in directory.rglob("*"):
        if existing.is_file() and existing not in wanted:
            existing.unlink()
    for name, file in files.items():
        path = directory / name
        if not path.resolve().is_relative_to(directory.resolve()):
            raise VolumeError(f"path {name} leaves the volume")
        if path.exists() and path.read_bytes() == file.content:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, file.mode | 0o200)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(file.content)
        temporary.chmod(file.mode)
        temporary.replace(path)


def mount_points(container: JsonObject, directories: Mapping[str, Path], env: Mapping[str, str]) -> dict[str, str]:
    """Return mount path -> path on this machine for a container's volumeMounts."""
    mounts: dict[str, str] = {}
    for mount in container.get("volumeMounts") or []:
        base = directories.get(mount["name"])
        if base is None:
            raise VolumeError(f'volumeMount names volume "{mount["name"]}", which the pod does not have')
        sub_path = mount.get("subPath") or ""
        if mount.get("subPathExpr"):
            sub_path = mount["subPathExpr"]
            for name, value in env.items():
                sub_path = sub_path.replace(f"$({name})", value)
        target = base / sub_path if sub_path else base
        if not target.resolve().is_relative_to(base.resolve()):
            raise VolumeError(f'subPath "{sub_path}" of volume "{mount["name"]}" leaves the volume')
        if sub_path and not target.exists():
            target.mkdir(parents=True)
        mounts[mount["mountPath"]] = str(target)
    return mounts
