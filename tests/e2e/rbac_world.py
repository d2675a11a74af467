"""A control plane in this process that writes down every request, and an operator with the chart's rights on it.

Pods are simulated: what counts here is what the operator asks of the API server.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import yaml
from support.patience import LIMIT_S

from wrpo_devcluster.apiserver.auth.rbac import Attributes
from wrpo_devcluster.bootstrap import PRESETS, crd_files, install_crds
from wrpo_devcluster.client import DEPLOYMENTS, EVENTS, JOBS, PODS, ApiError, Resource
from wrpo_devcluster.cluster import Cluster, write_kubeconfig
from wrpo_devcluster.config import NodeConfig, SimulatedRule, simulated_config
from wrpo_devcluster.delays import NONE, Delays
from wrpo_devcluster.faults import Refusal
from wrpo_devcluster.ports import free_ports
from wrpo_operator.cli.install import CHECKOUT, find_tool
from wrpo_operator.runtime.resources import CLUSTER_QUEUES, COHORTS, FLAVORS, LOCAL_QUEUES, WORKLOADS

JsonObject = dict[str, Any]
SYSTEM, TEAM = "wrpo-system", "team-a"
ACCOUNT = "wrpo-operator"
RBAC = "rbac.authorization.k8s.io"
KINDS = {
    "wrpoexperiments": Resource("wrpo.ai", "v1alpha1", "wrpoexperiments"),
    "wrposweeps": Resource("wrpo.ai", "v1alpha1", "wrposweeps"),
    "pods": PODS,
    "jobs": JOBS,
    "events": EVENTS,
    "resourcequotas": Resource("", "v1", "resourcequotas"),
    "deployments": DEPLOYMENTS,
    **{plural: Resource(RBAC, "v1", plural) for plural in ("roles", "clusterroles", "clusterrolebindings")},
}


@dataclass(frozen=True, slots=True)
class Call:
    """One request of the operator, as authorization sees it."""

    verb: str
    group: str
    resource: str
    """With the subresource after a slash."""
    namespace: str
    name: str
    code: int


@dataclass
class World:
    """One cluster, the rendered chart and one operator."""

    directory: Path
    mode: str
    values: JsonObject
    delays: Delays = NONE
    nodes: tuple[NodeConfig, ...] = ()
    """Empty: two nodes without accelerators."""
    rules: tuple[SimulatedRule, ...] = ()
    calls: list[Call] = field(default_factory=list)
    veteran: JsonObject = field(default_factory=dict)
    """An experiment as it was stored under the previous CRD."""
    shown: dict[str, str] = field(default_factory=dict)
    """What people can read at the end: statuses, events, metrics, log."""
    final: dict[str, JsonObject] = field(default_factory=dict)
    """Experiments by name, at the end."""
    granted: set[tuple[str, str, str, str, str]] = field(default_factory=set)
    """(namespace or "" for all, group, resource, verb, resource name or "" for any) of all roles."""
    _started: threading.Event = field(default_factory=threading.Event)
    _failed: BaseException | None = None
    _operator: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name=f"cluster-{self.mode}")
        self._thread.start()
        assert self._started.wait(LIMIT_S)
        if self._failed is not None:
            raise self._failed
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_operator()
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        config = simulated_config(self.directory / "state", cpu="64", memory="256Gi", nodes=self.nodes)
        config = replace(config, delays=self.delays, rules=self.rules)
        try:
            async with Cluster(config) as cluster:
                self.cluster = cluster
                files = [file for preset in PRESETS for file in crd_files(preset)]
                await install_crds(cluster.client, files)
                cluster.api.attached.request_log = self._record
                self.kubeconfig = cluster.kubeconfig_path
                self._started.set()
                await self._stop.wait()
        except BaseException as error:
            self._failed = error
            raise
        finally:
            self._started.set()

    def _record(self, user: str, asked: Attributes, code: int) -> None:
        if user == f"system:serviceaccount:{SYSTEM}:{ACCOUNT}":
            self.calls.append(Call(asked.verb, asked.group, asked.combined, asked.namespace, asked.name, code))

    # What an administrator does

    def run(self, tool: str, *arguments: str, stdin: str | None = None) -> str:
        env = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        done = subprocess.run(
            [find_tool(tool), *arguments],
            env=env,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{tool} {' '.join(arguments[:4])}: {done.stderr}"
        return done.stdout

    def helm(self, chart: Path) -> None:
        """Install or upgrade the chart; no pod of it runs, for pods are simulated."""
        values = {"replicas": 0, "mode": self.mode, **self.values}
        arguments = ("upgrade", "--install", "wrpo", str(chart), "-n", SYSTEM, "--create-namespace", "--values", "-")
        self.run("helm", *arguments, stdin=json.dumps(values))

    def apply(self, *objects: JsonObject, namespace: str = TEAM) -> None:
        self.run("kubectl", "-n", namespace, "apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def edit(self, name: str, **spec: Any) -> None:
        self.run(
            "kubectl", "-n", TEAM, "patch", "wrpoexperiment", name, "--type=merge", "-p", json.dumps({"spec": spec})
        )

    def get(self, kind: str, name: str = "", namespace: str = TEAM) -> JsonObject:
        """Return an object or, as {"items": ...}, all of a kind; without a process, for it is asked often."""
        return asyncio.run_coroutine_threadsafe(self._get(KINDS[kind], name, namespace), self.loop).result(LIMIT_S)

    async def _get(self, resource: Resource, name: str, namespace: str) -> JsonObject:
        where = None if resource.group == RBAC and resource.plural.startswith("cluster") else namespace
        if name:
            return await self.cluster.client.get(resource, name, where)
        return {"items": await self.cluster.client.list(resource, where)}

    def annotate_pods(self, pods: list[JsonObject], **annotations: str) -> None:
        """Change annotations of simulated pods, e.g. `run_seconds="0"` to end those that run forever."""
        named = {f"fake.test/{key.replace('_', '-')}": value for key, value in annotations.items()}
        patch = {"metadata": {"annotations": named}}

        async def change() -> None:
            for pod in pods:
                await self.cluster.client.patch(PODS, pod["metadata"]["name"], TEAM, patch)

        asyncio.run_coroutine_threadsafe(change(), self.loop).result(LIMIT_S)

    def refuse_next_status(self, resource: str = "wrpoexperiments") -> None:
        """Answer the operator's next write of a status as if somebody else had just written it."""
        user = f"system:serviceaccount:{SYSTEM}:{ACCOUNT}"
        refusal = Refusal(code=409, verb="patch", group="wrpo.ai", resource=resource, user=user)
        self.loop.call_soon_threadsafe(self.cluster.faults.refuse, refusal)

    def experiments(self) -> list[JsonObject]:
        return list(self.get("wrpoexperiments")["items"])

    def jobs(self, experiment: str) -> list[str]:
        """Return the names of an experiment's Jobs."""
        jobs = [job["metadata"] for job in self.get("jobs")["items"]]
        return [meta["name"] for meta in jobs if meta["labels"].get("wrpo.ai/experiment") == experiment]

    def status(self, name: str) -> JsonObject:
        return self.get("wrpoexperiments", name).get("status") or {}

    def wait(self, what: str, condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            try:
                value = condition()
            except ApiError:
                value = None
            if value:
                return value
            assert self._operator is None or self._operator.poll() is None, self.log()[-3000:]
            time.sleep(0.2)
        raise AssertionError(f"{what}: not within {LIMIT_S:g} s\n{self.log()[-3000:]}")

    def wait_call(self, verb: str, resource: str, **more: Any) -> None:
        """Wait until the operator has made a call, whatever it was answered."""

        def made() -> bool:
            return any(
                (call.verb, call.resource) == (verb, resource)
                and all(getattr(call, key) == value for key, value in more.items())
                for call in list(self.calls)
            )

        self.wait(f"{verb} {resource}", made)

    # The operator

    def start_operator(self) -> None:
        """Start it with the environment of the chart's Deployment, but for the network of a pod."""
        deployment = self.get("deployments", ACCOUNT, SYSTEM)
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        chart = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
        chart = {name: value for name, value in chart.items() if not name.startswith("WRPO_PROGRESS")}
        self.health, self.progress = free_ports(2)
        token = self.run("kubectl", "-n", SYSTEM, "create", "token", ACCOUNT).strip()
        credentials = self.directory / "operator.kubeconfig"
        write_kubeconfig(credentials, self.cluster.url, self.cluster._certificates, token)
        passed = {k: v for k, v in os.environ.items() if not k.startswith(("WRPO_", "KUBE", "WATCH_", "POD_"))}
        env = {
            **passed,
            **chart,
            "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "operator")]),
            "POD_NAMESPACE": SYSTEM,
            "POD_NAME": "operator-0",
            "WRPO_BIND": "127.0.0.1",
            "WRPO_HEALTH_PORT": str(self.health),
            "WRPO_PROGRESS_PORT": str(self.progress),
            "WRPO_LOG_LEVEL": "debug",
        }
        command = [sys.executable, "-m", "wrpo_operator", "run", "--kubeconfig", str(credentials)]
        with (self.directory / "operator.log").open("ab") as log:
            self._operator = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.wait("the operator is ready", self._ready)

    def stop_operator(self) -> None:
        if self._operator is not None:
            self._operator.terminate()
            self._operator.wait(LIMIT_S)
            self._operator = None

    def _ready(self) -> bool:
        try:
            return self.http(f"http://127.0.0.1:{self.health}/readyz")[0] == 200
        except OSError:
            return False

    def log(self) -> str:
        path = self.directory / "operator.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def metrics(self) -> str:
        return self.http(f"http://127.0.0.1:{self.health}/metrics")[1]

    def http(self, url: str, body: JsonObject | None = None, token: str = "") -> tuple[int, str]:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(url, data, {"Authorization": f"Bearer {token}"} if token else {})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=LIMIT_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def post_progress(self, experiment: str, token: str = "") -> tuple[int, str]:
        """Post as the experiment's running pod would, or with another token."""
        pod = self.wait("a pod runs", lambda: self._running_pod(experiment))
        meta = pod["metadata"]
        labels = meta["labels"]
        token = token or self.cluster.api.tokens.issue(
            TEAM,
            pod["spec"]["serviceAccountName"],
            audiences=["wrpo.ai/progress"],
            expires_s=600,
            pod=(meta["name"], meta["uid"]),
        )
        path = f"/v1/namespaces/{TEAM}/experiments/{experiment}/stages/{labels['wrpo.ai/stage']}"
        url = f"http://127.0.0.1:{self.progress}{path}/attempts/{labels['wrpo.ai/attempt']}"
        return self.http(url, {"trainerStatus": {"progressPercentage": 40}}, token)

    def _running_pod(self, experiment: str) -> JsonObject | None:
        pods = self.get("pods")["items"]
        own = [pod for pod in pods if pod["metadata"]["labels"].get("wrpo.ai/experiment") == experiment]
        return next((pod for pod in own if pod["status"].get("phase") == "Running"), None)


def open_crd(group: str, version: str, plural: str, kind: str) -> JsonObject:
    """Return a CRD that takes any object: for kinds whose controllers do not matter here."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": plural, "singular": kind.lower(), "kind": kind, "listKind": f"{kind}List"},
            "versions": [{"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
        },
    }


OPEN_CRDS = (
    open_crd("scheduling.volcano.sh", "v1beta1", "podgroups", "PodGroup"),
    open_crd("scheduling.x-k8s.io", "v1alpha1", "podgroups", "PodGroup"),
    *(
        open_crd(kind.group, kind.version, kind.plural, kind.kind)
        for kind in (WORKLOADS, LOCAL_QUEUES, CLUSTER_QUEUES, COHORTS, FLAVORS)
    ),
)
