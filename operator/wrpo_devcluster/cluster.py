"""Embedded cluster in one event loop: API server, controllers, scheduler, kubelet, service proxy."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import ssl
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web

from wrpo_devcluster.apiserver.server import ApiServer
from wrpo_devcluster.bootstrap import ensure_cluster_objects
from wrpo_devcluster.certificates import Certificates, ensure_certificates, write_private
from wrpo_devcluster.client import SERVICE_ACCOUNTS, Client, JsonObject
from wrpo_devcluster.clock import Clock, SystemClock
from wrpo_devcluster.config import ClusterConfig
from wrpo_devcluster.controllers.base import Controller, WatchHub, cancel_all, get_or_none
from wrpo_devcluster.controllers.disruption import DisruptionController
from wrpo_devcluster.controllers.garbage import GarbageCollector
from wrpo_devcluster.controllers.job import JobController, JobTtlController
from wrpo_devcluster.controllers.jobset import JobSetController
from wrpo_devcluster.controllers.namespaces import DefaultContentController, NamespaceController
from wrpo_devcluster.controllers.network import EndpointsController
from wrpo_devcluster.controllers.pytorchjob import PyTorchJobController
from wrpo_devcluster.controllers.pytorchjob_render import DEFAULT_PORT
from wrpo_devcluster.controllers.sweep import EventSweeper, PodGarbageCollector
from wrpo_devcluster.controllers.trainjob import TrainJobController
from wrpo_devcluster.controllers.trainjob_render import DEFAULT_PORT as TRAINER_PORT
from wrpo_devcluster.controllers.volumes import ClaimController
from wrpo_devcluster.controllers.workloads import DeploymentController, ReplicaSetController
from wrpo_devcluster.delays import delays_middleware
from wrpo_devcluster.faults import Faults
from wrpo_devcluster.faults_http import FaultInjection, faults_middleware
from wrpo_devcluster.kubelet.agent import Kubelet, PodRuntime
from wrpo_devcluster.kubelet.context import ApiAccess, Devices, NodeServices
from wrpo_devcluster.kubelet.logs import FileLogReader
from wrpo_devcluster.kubelet.names import NameService, install_tools
from wrpo_devcluster.kubelet.process import ProcessRuntime
from wrpo_devcluster.kubelet.proxy import ServiceProxy
from wrpo_devcluster.kubelet.simulated import SimulatedRuntime
from wrpo_devcluster.kubelet.warm import WarmProcess
from wrpo_devcluster.ports import HOST, free_ports
from wrpo_devcluster.rbac_delay import rbac_delay_middleware
from wrpo_devcluster.scheduler.scheduler import Scheduler

log = logging.getLogger(__name__)

CONTROLLER_MANAGER = "system:kube-controller-manager"
SCHEDULER = "system:kube-scheduler"
KUBELET = "system:node:wrpo-dev"
_FIRST_PORT = 23456
_PORT_SPAN = 8000
"""Below the ports that connections get."""
_ACCOUNT_WAIT_S = 60.0


class Cluster:
    """Embedded cluster, which `async with Cluster(config)` runs; `client` is the admin's in-process client."""

    def __init__(self, config: ClusterConfig, *, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.faults = Faults()
        self.port = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._running: list[Controller] = []
        self._runner: web.AppRunner | None = None
        self._kubelet: Kubelet | None = None
        self._process_runtime: ProcessRuntime | None = None
        self._warm: WarmProcess | None = None

    @property
    def url(self) -> str:
        """Address of the API server."""
        return f"https://{HOST}:{self.port}"

    @property
    def kubeconfig_path(self) -> Path:
        """Kubeconfig with the admin's credentials."""
        return self.config.state_dir / "kubeconfig"

    @property
    def ca_path(self) -> Path:
        """Certificate of the authority that signs the API server's."""
        return self._certificates.ca_file

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start all components; return when pods can be created. Call `stop` also after an error."""
        state_dir = self.config.state_dir
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._certificates = ensure_certificates(state_dir / "pki", self.clock.now())
        self.admin_token = admin_token(state_dir)
        self.api = ApiServer(
            state_dir / "apiserver",
            admin_token=self.admin_token,
            clock=self.clock.now,
            faults=self.faults,
            crd_status_delay_s=self.config.crd_status_delay_s,
        )
        self.client: Client = self.api.client("kubernetes-admin", manager="wrpo-devcluster")
        manager = self.api.client(CONTROLLER_MANAGER)
        self._hub = WatchHub(manager, self.clock)
        self._proxy = ServiceProxy()
        await self._listen()
        await ensure_cluster_objects(manager, self.config.nodes, self.clock.now())
        self._running = self._controllers(manager)
        for controller in self._running:
            controller.attach(self._hub)
        self._kubelet = self._make_kubelet()
        self._kubelet.attach(self._hub)
        if not self.config.simulated:
            self._proxy.attach(self._hub)
            self._proxy.start()
        self._hub.start()
        self._tasks = [asyncio.create_task(c.run(), name=c.name) for c in self._running]
        await self._wait_for_default_account()
        self._write_kubeconfig()

    async def _wait_for_default_account(self) -> None:
        """Wait until pods can be created, so that the first requests need no retry."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _ACCOUNT_WAIT_S
        while await get_or_none(self.client, SERVICE_ACCOUNTS, "default", "default") is None:
            if loop.time() > deadline:
                why = f"was not created within {_ACCOUNT_WAIT_S:g} s; see the log for the reason"
                raise RuntimeError(f"the ServiceAccount `default` {why}")
            await asyncio.sleep(0.01)

    async def stop(self, *, stop_pods: bool = True) -> None:
        """Stop everything. Without `stop_pods` the pods' processes keep running, and the next start adopts them."""
        await cancel_all(self._tasks)
        self._tasks = []
        for controller in self._running:
            controller.queue.close()
        if stop_pods and self._process_runtime is not None:
            await self._process_runtime.shutdown()
        if self._kubelet is not None:
            await self._kubelet.close()
        if self._warm is not None:
            self._warm.close()
        if hasattr(self, "_hub"):
            await self._hub.close()
            await self._proxy.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if hasattr(self, "api"):
            await self.api.close()

    def _controllers(self, client: Client) -> list[Controller]:
        clock, config = self.clock, self.config
        ca_pem = self._certificates.ca_file.read_text(encoding="ascii")
        job_backoff_s = 10.0 * config.backoff_scale
        every: list[Controller] = [
            JobController(client, clock, backoff_s=job_backoff_s, delays=config.delays),
            JobTtlController(client, clock),
            ReplicaSetController(client, clock),
            DeploymentController(client, clock),
            PyTorchJobController(client, clock, default_port=lambda job: self._training_port(job, DEFAULT_PORT)),
            TrainJobController(client, clock, default_port=lambda job: self._training_port(job, TRAINER_PORT)),
            JobSetController(client, clock),
            GarbageCollector(client, clock),
            PodGarbageCollector(client, clock),
            EventSweeper(client, clock),
            DisruptionController(client, clock),
            NamespaceController(client, clock),
            DefaultContentController(client, clock, ca_pem=ca_pem),
            EndpointsController(client, clock),
            ClaimController(client, clock, state_dir=config.state_dir),
            Scheduler(self.api.client(SCHEDULER), clock, faults=self.faults, delays=config.delays),
        ]
        return [controller for controller in every if controller.name not in config.without_controllers]

    def _training_port(self, job: JsonObject, default: int) -> int:
        """Return a rendezvous port per job, because the pods of all jobs share one network."""
        if self.config.simulated:
            return default
        return _FIRST_PORT + int(job["metadata"]["uid"].replace("-", "")[:8], 16) % _PORT_SPAN

    def _make_kubelet(self) -> Kubelet:
        nodes = frozenset(node.name for node in self.config.nodes)
        if self.config.simulated:
            runtime: PodRuntime = SimulatedRuntime(self.clock, delays=self.config.delays, rules=self.config.rules)
            return Kubelet(self.api.client(KUBELET, manager="OpenAPI-Generator"), self.clock, runtime, nodes=nodes)
        client = self.api.client(KUBELET, manager="kubelet")
        names = NameService(self.config.state_dir / "dns")
        names.attach(self._hub)
        tools_dir = install_tools(self.config.state_dir / "bin")
        if self.config.warm:
            environment = self.config.container_environment(tools_dir)
            self._warm = WarmProcess(self.config.warm, environment, self.config.state_dir / "warm")
            self._warm.start()
        node = NodeServices(
            client=client,
            clock=self.clock,
            config=self.config,
            api=ApiAccess(HOST, self.port, self._certificates.ca_file),
            names=names,
            faults=self.faults,
            issue_token=self.api.tokens.issue,
            tools_dir=tools_dir,
            devices=Devices(max((node.gpus for node in self.config.nodes), default=0)),
            warm=self._warm,
        )
        self._process_runtime = process_runtime = ProcessRuntime(node)
        self.api.attached.log_reader = FileLogReader(client, self.clock, process_runtime.log_dir)
        return Kubelet(client, self.clock, process_runtime, nodes=nodes)

    async def _listen(self) -> None:
        app = self.api.app()
        injection = FaultInjection(self.faults, self.client, self.clock, self.api.close_watches)
        app.middlewares.insert(0, delays_middleware(self.config.delays, self.api.count_events, self.clock))
        app.middlewares.insert(0, rbac_delay_middleware(self.config.rbac_delay_s, self.admin_token, self.clock))
        app.middlewares.insert(0, faults_middleware(injection, self.admin_token))
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._certificates.cert_file, self._certificates.key_file)
        wanted = self.config.port or _remembered_port(self.config.state_dir) or free_ports(1)[0]
        site = web.TCPSite(self._runner, HOST, wanted, ssl_context=context)
        try:
            await site.start()
        except OSError:
            if self.config.port:
                raise
            # A remembered port was taken while the cluster was down; pods that are still running lose the API.
            log.warning("port %s is taken; using another one", wanted)
            await web.TCPSite(self._runner, HOST, free_ports(1)[0], ssl_context=context).start()
        self.port = int(self._runner.addresses[0][1])
        (self.config.state_dir / "port").write_text(str(self.port), encoding="ascii")

    def _write_kubeconfig(self) -> None:
        write_kubeconfig(self.kubeconfig_path, self.url, self._certificates, self.admin_token)


def admin_token(state_dir: Path) -> str:
    """Return the admin's token, which the first call creates in a file that only its owner can read."""
    path = state_dir / "admin-token"
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="ascii").strip()
    token = secrets.token_urlsafe(32)
    write_private(path, token.encode())
    return token


def write_kubeconfig(path: Path, url: str, certificates: Certificates, token: str) -> None:
    """Write a kubeconfig with one cluster and one user."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "wrpo-dev",
                "cluster": {"server": url, "certificate-authority": str(certificates.ca_file.resolve())},
            }
        ],
        "users": [{"name": "wrpo-dev-admin", "user": {"token": token}}],
        "contexts": [
            {"name": "wrpo-dev", "context": {"cluster": "wrpo-dev", "user": "wrpo-dev-admin", "namespace": "default"}}
        ],
        "current-context": "wrpo-dev",
    }
    write_private(path, json.dumps(config, indent=2).encode())


def _remembered_port(state_dir: Path) -> int:
    try:
        return int((state_dir / "port").read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return 0
