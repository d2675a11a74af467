"""Test rig of controllers and a kubelet on the in-memory API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from devcluster.memory_api import MemoryClient
from support.patience import LIMIT_S

from wrpo_devcluster.bootstrap import node_object
from wrpo_devcluster.client import NODES, JsonObject
from wrpo_devcluster.clock import Clock, FastClock
from wrpo_devcluster.config import NodeConfig
from wrpo_devcluster.controllers.base import Controller, WatchHub, cancel_all
from wrpo_devcluster.delays import NONE, Delays
from wrpo_devcluster.faults import Faults
from wrpo_devcluster.kubelet.agent import Kubelet
from wrpo_devcluster.kubelet.simulated import SimulatedRuntime
from wrpo_devcluster.scheduler.scheduler import Scheduler

Make = Callable[[MemoryClient, Clock], list[Controller]]
GPU_NODES = tuple(NodeConfig(name=f"gpu-{i}", cpu="8", memory="64Gi", gpus=8) for i in range(2))


@asynccontextmanager
async def simulated(
    make: Make, *, speed: float = 50.0, delays: Delays = NONE
) -> AsyncIterator[tuple[MemoryClient, Clock]]:
    """Run two nodes of 8 GPUs, pods that follow annotations, and the controllers that `make` returns."""
    clock = FastClock(speed)
    client = MemoryClient(clock)
    hub = WatchHub(client, clock)
    controllers = [*make(client, clock), Scheduler(client, clock, faults=Faults(), delays=delays)]
    for node in GPU_NODES:
        await client.create(NODES, node_object(node, clock.now()))
    for controller in controllers:
        controller.attach(hub)
    kubelet = Kubelet(client, clock, SimulatedRuntime(clock, delays=delays), nodes=frozenset(n.name for n in GPU_NODES))
    kubelet.attach(hub)
    hub.start()
    tasks = [asyncio.create_task(c.run()) for c in controllers]
    try:
        yield client, clock
    finally:
        await cancel_all(tasks)
        for controller in controllers:
            controller.queue.close()
        await kubelet.close()
        await hub.close()


async def until(check: Callable[[], Awaitable[Any]]) -> Any:
    """Return the first true result; fail after LIMIT_S real seconds."""
    deadline = asyncio.get_running_loop().time() + LIMIT_S
    while True:
        answer = await check()
        if answer:
            return answer
        assert asyncio.get_running_loop().time() < deadline, "the condition was not met in time"
        await asyncio.sleep(0.005)


def has_condition(obj: JsonObject, kind: str, reason: str | None = None) -> bool:
    return any(
        c["type"] == kind and c["status"] == "True" and reason in {None, c.get("reason")}
        for c in (obj.get("status") or {}).get("conditions") or []
    )
