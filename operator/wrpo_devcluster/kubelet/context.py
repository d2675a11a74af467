"""Context of a pod: the services of its node, and its address, directory and volumes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from wrpo_devcluster.client import Client
from wrpo_devcluster.clock import Clock
from wrpo_devcluster.config import ClusterConfig
from wrpo_devcluster.faults import Faults
from wrpo_devcluster.kubelet.agent import PodHandle
from wrpo_devcluster.kubelet.names import NameService
from wrpo_devcluster.kubelet.volumes import TokenIssuer
from wrpo_devcluster.kubelet.warm import WarmProcess


@dataclass(frozen=True, slots=True)
class ApiAccess:
    """Address of the API server for pods, and the authority that signs its certificate."""

    host: str
    port: int
    ca_file: Path

    @property
    def url(self) -> str:
        """URL of the API server."""
        return f"https://{self.host}:{self.port}"


class Devices:
    """Assignment of the node's GPUs to pods."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._held: dict[str, list[int]] = {}

    def assign(self, uid: str, count: int) -> list[int]:
        """Return the device numbers of a pod. The scheduler has ensured that there are enough."""
        if uid not in self._held:
            taken = {number for numbers in self._held.values() for number in numbers}
            self._held[uid] = [n for n in range(self._total) if n not in taken][:count]
        return self._held[uid]

    def release(self, uid: str) -> None:
        """Return a pod's devices, if it has any."""
        self._held.pop(uid, None)


@dataclass(frozen=True, slots=True)
class NodeServices:
    """Services of a node that all pods share."""

    client: Client
    clock: Clock
    config: ClusterConfig
    api: ApiAccess
    names: NameService
    faults: Faults
    issue_token: TokenIssuer
    tools_dir: Path
    devices: Devices
    warm: WarmProcess | None = None
    """Process from which containers of one program are forked."""

    def pod_dir(self, uid: str) -> Path:
        """Return the directory with a pod's data."""
        return self.config.pods_dir / uid

    def entrypoint(self, image: str) -> list[str] | None:
        """Return the entrypoint of an image; None for an unknown image."""
        name = image.partition("@")[0]
        bare = re.sub(r":[^/:]*$", "", name)
        for candidate in (image, name, bare, bare.rpartition("/")[2]):
            if candidate in self.config.images:
                return list(self.config.images[candidate])
        return None


@dataclass(slots=True)
class PodContext:
    """One pod on its node."""

    node: NodeServices
    handle: PodHandle
    address: str
    volumes: dict[str, Path] = field(default_factory=dict)
    """Directories of the pod's volumes by name; empty until they are prepared."""

    @property
    def directory(self) -> Path:
        """Directory with the pod's data."""
        return self.node.pod_dir(self.handle.uid)

    def log_dir(self, container: str) -> Path:
        """Return the directory that holds a container's runs."""
        return self.directory / container
