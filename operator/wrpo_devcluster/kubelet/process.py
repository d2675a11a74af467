"""Process runtime: the services that all pods share, and one `PodRun` for each pod."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from typing_extensions import override

from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.controllers.network import pick_address
from wrpo_devcluster.kubelet.agent import PodHandle, PodRuntime
from wrpo_devcluster.kubelet.context import NodeServices, PodContext
from wrpo_devcluster.kubelet.podrun import PodRun
from wrpo_devcluster.objects import is_terminal

POD_PREFIX = "127.64"
"""Pods get loopback addresses 127.64.y.z, Services 127.96.y.z."""


class ProcessRuntime(PodRuntime):
    """Runtime whose pods are processes of this machine."""

    def __init__(self, node: NodeServices) -> None:
        self._node = node
        self._addresses: dict[str, str] = {}
        self._runs: dict[str, PodRun] = {}

    @override
    async def run(self, handle: PodHandle) -> None:
        if is_terminal(handle.pod):
            return
        run = PodRun(PodContext(self._node, handle, self._address_of(handle.pod)))
        self._runs[handle.uid] = run
        try:
            await run.run()
        finally:
            self._runs.pop(handle.uid, None)
            self._node.devices.release(handle.uid)

    @override
    async def forget(self, uid: str) -> None:
        self._addresses.pop(uid, None)
        await asyncio.to_thread(shutil.rmtree, self._node.pod_dir(uid), ignore_errors=True)

    async def shutdown(self) -> None:
        """Stop every pod's processes, as a graceful node shutdown does."""
        grace_s = self._node.config.shutdown_grace_s
        await asyncio.gather(*(run.shutdown(grace_s) for run in tuple(self._runs.values())))

    def log_dir(self, uid: str, container: str) -> Path:
        """Return the directory of a container's runs."""
        return self._node.pod_dir(uid) / container

    def _address_of(self, pod: JsonObject) -> str:
        uid = pod["metadata"]["uid"]
        known = (pod.get("status") or {}).get("podIP") or self._addresses.get(uid)
        address = str(known or pick_address(POD_PREFIX, uid, self._addresses.values()))
        self._addresses[uid] = address
        return address
