"""A small PyTorchJob controller in the test's process, for clusters where the CRD has no controller.

It takes the decisions of the embedded control plane's. Its pods have no init container that waits for the master: that
of Kubeflow is not restricted, and the tests' namespaces admit restricted pods only.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path

from http_client import HttpClient
from support.patience import LIMIT_S

from wrpo_devcluster.clock import SystemClock
from wrpo_devcluster.controllers.base import WatchHub
from wrpo_devcluster.controllers.pytorchjob import PyTorchJobController
from wrpo_operator.runtime.kube import HttpKube

TLS_CLOSE_S = 0.5


class TrainingController:
    """Runs in a thread of its own, on the PyTorchJobs of one namespace, until `stop`."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self._kubeconfig = kubeconfig
        self._namespace = namespace
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pytorchjob-controller", daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(LIMIT_S), "the PyTorchJob test controller did not start"

    def stop(self) -> None:
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive(), "the PyTorchJob test controller does not stop"

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        kube = await HttpKube.connect(str(self._kubeconfig))
        client, clock = HttpClient(kube, self._namespace), SystemClock()
        hub = WatchHub(client, clock)
        controller = PyTorchJobController(client, clock, wait_for_master=False)
        controller.attach(hub)
        hub.start()
        running = asyncio.create_task(controller.run())
        self._started.set()
        try:
            await self._stop.wait()
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            controller.queue.close()
            await hub.close()
            await kube.close()
            # aiohttp ends TLS connections in the background; the loop has to live for that.
            await asyncio.sleep(TLS_CLOSE_S)
