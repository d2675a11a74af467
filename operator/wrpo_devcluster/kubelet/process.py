"""The process runtime: what all pods share, and one `PodRun` for each."""

from __future__ import annotations

import asyncio
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from wrpo_devcluster.client import Client, JsonObject
from wrpo_devcluster.clock import Clock
from wrpo_devcluster.config import ClusterConfig
from wrpo_devcluster.controllers.network import pick_address
from wrpo_devcluster.faults import Faults
from wrpo_devcluster.kubelet.agent import PodHandle
from wrpo_devcluster.kubelet.names import NameService
from wrpo_devcluster.kubelet.podrun import PodRun
from wrpo_devcluster.kubelet.volumes import TokenIssuer
from wrpo_devcluster.objects import is_terminal

POD_PREFIX = "127.64"
"""Pods get loopback addresses 127.64.y.z, Services 127.96.y.z."""


@dataclass(frozen=True, slots=True)
class ApiAccess:
    """Where pods find the API server, and how its certificate is checked."""

    host: str
    port: int
    ca_file: Path

    @property
    def url(self) -> str:
        return f"https://{self.host}:{self.port}"


class ProcessRuntime:
    def __init__(
        self,
        client: Client,
        clock: Clock,
        config: ClusterConfig,
        *,
        api: ApiAccess,
        names: NameService,
        faults: Faults,
        issue_token: TokenIssuer,
        tools_dir: Path,
    ) -> None:
        self.client = client
        self.clock = clock
        self.config = config
        self.api = api
        self.names = names
        self.faults = faults
        self.issue_token = issue_token
        self.tools_dir = tools_dir
        self.is_stopping = False
        self._addresses: dict[str, str] = {}
        self._gpus: dict[str, list[int]] = {}
        self._runs: dict[str, PodRun] = {}

    async def run(self, handle: PodHandle) -> None:
        if is_terminal(handle.pod):
            return
        run = PodRun(self, handle)
        self._runs[handle.uid] = run
        try:
            await run.run()
        finally:
            self._runs.pop(handle.uid, None)
            self._gpus.pop(handle.uid, None)

    async def forget(self, uid: str) -> None:
        self._addresses.pop(uid, None)
        await asyncio.to_thread(shutil.rmtree, self.pod_dir(uid), ignore_errors=True)

    async def shutdown(self) -> None:
        """Stop every pod's processes, as a node that is shut down in good order."""
        self.is_stopping = True
        await asyncio.gather(*(run.shutdown(self.config.shutdown_grace_s) for run in tuple(self._runs.values())))

    def pod_dir(self, uid: str) -> Path:
        return self.config.pods_dir / uid

    def log_dir(self, uid: str, container: str) -> Path:
        return self.pod_dir(uid) / container

    def address_of(self, pod: JsonObject) -> str:
        uid = pod["metadata"]["uid"]
        known = (pod.get("status") or {}).get("podIP") or self._addresses.get(uid)
        address = str(known or pick_address(POD_PREFIX, uid, self._addresses.values()))
        self._addresses[uid] = address
        return address

    def assign_gpus(self, uid: str, count: int) -> list[int]:
        """Return the device numbers of a pod; the scheduler has seen to it that there are enough."""
        if uid in self._gpus:
            return self._gpus[uid]
        taken = {number for numbers in self._gpus.values() for number in numbers}
        total = max((node.gpus for node in self.config.nodes), default=0)
        self._gpus[uid] = [n for n in range(total) if n not in taken][:count]
        return self._gpus[uid]

    def entrypoint(self, image: str) -> list[str] | None:
        """Return what a container of this image runs without a command; None for an unknown image."""
        name = image.partition("@")[0]
        bare = re.sub(r":[^/:]*$", "", name)
        for candidate in (image, name, bare, bare.rpartition("/")[2]):
            if candidate in self.config.images:
                return list(self.config.images[candidate])
        return None
