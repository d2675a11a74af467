"""Embedded cluster in one process: API server, controllers, scheduler and pods as processes."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from devcluster.rig import has_condition, until

from wrpo_devcluster.bootstrap import crd_files, install_crds
from wrpo_devcluster.client import (
    CLAIMS,
    CONFIG_MAPS,
    DEPLOYMENTS,
    EVENTS,
    JOBS,
    NAMESPACES,
    PODS,
    PYTORCH_JOBS,
    REPLICA_SETS,
    SERVICES,
    TRAIN_JOBS,
    TRAINING_RUNTIMES,
    JsonObject,
    LogOptions,
)
from wrpo_devcluster.cluster import Cluster
from wrpo_devcluster.config import ClusterConfig, default_environment, default_node
from wrpo_devcluster.controllers.base import get_or_none
from wrpo_devcluster.controllers.network import proxy_address
from wrpo_devcluster.controllers.volumes import PROVISIONER, STORAGE_CLASSES
from wrpo_devcluster.objects import condition

pytestmark = pytest.mark.cluster

MASTER = """
import os, socket
server = socket.create_server((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
for _ in range(int(os.environ["PET_NNODES"]) - 1):
    connection, _ = server.accept()
    print(connection.recv(100).decode(), flush=True)
    connection.send(b"bye")
    connection.close()
"""
WORKER = """
import os, socket, time
connection = None
while connection is None:
    try:
        connection = socket.create_connection((os.environ["PET_MASTER_ADDR"], int(os.environ["PET_MASTER_PORT"])))
    except OSError:
        time.sleep(0.05)
connection.send(f"node {os.environ['PET_NODE_RANK']} of {os.environ['WORLD_SIZE']}".encode())
print(connection.recv(10).decode(), flush=True)
"""


@asynccontextmanager
async def running(state_dir: Path) -> AsyncIterator[Cluster]:
    config = ClusterConfig(
        state_dir=state_dir,
        nodes=(default_node(),),
        environment=default_environment(os.environ),
        backoff_scale=0.05,
        shutdown_grace_s=1.0,
    )
    async with Cluster(config) as cluster:
        yield cluster


def template(command: list[str], *, name: str = "c", **container: Any) -> JsonObject:
    return {"spec": {"containers": [{"name": name, "image": "any", "command": command, **container}]}}


async def log_of(cluster: Cluster, pod: str, container: str) -> str:
    assert cluster.api.attached.log_reader is not None
    reader = cluster.api.attached.log_reader.read("default", pod, container, LogOptions())
    return b"".join([part async for part in reader]).decode()


def test_a_pytorchjobs_processes_find_each_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            client = cluster.client
            assert await install_crds(client, crd_files("pytorchjob")) == ["pytorchjobs.kubeflow.org"]
            replicas = {
                role: {
                    "replicas": 1,
                    "restartPolicy": "Never",
                    "template": template(["python", "-c", code], name="pytorch"),
                }
                for role, code in (("Master", MASTER), ("Worker", WORKER))
            }
            job = {
                "apiVersion": "kubeflow.org/v1",
                "kind": "PyTorchJob",
                "metadata": {"name": "train"},
                "spec": {"nprocPerNode": "1", "pytorchReplicaSpecs": replicas},
            }
            await client.create(PYTORCH_JOBS, job, "default")

            async def succeeded() -> bool:
                return has_condition(await client.get(PYTORCH_JOBS, "train", "default"), "Succeeded")

            await until(succeeded)
            assert await log_of(cluster, "train-master-0", "pytorch") == "node 1 of 2\n"
            await client.delete(PYTORCH_JOBS, "train", "default", propagation="Background")

            async def nothing_left() -> bool:
                services = [s["metadata"]["name"] for s in await client.list(SERVICES, "default")]
                pods = await client.list(PODS, "default")
                return not pods and not any(name.startswith("train") for name in services)

            await until(nothing_left)

    asyncio.run(scenario())


GANG = """
import os, socket, time
rank, port = int(os.environ["PET_NODE_RANK"]), int(os.environ["PET_MASTER_PORT"])
if rank == 0:
    server = socket.create_server(("0.0.0.0", port))  # as torch's store listens: on every address
    connection, _ = server.accept()
    print(connection.recv(100).decode(), flush=True)
else:
    connection = None
    while connection is None:
        try:
            connection = socket.create_connection((os.environ["PET_MASTER_ADDR"], port), 5)
        except OSError:
            time.sleep(0.05)
    connection.send(f"{os.environ['GANG']}: node {rank} of {os.environ['PET_NNODES']}".encode())
"""


def test_two_trainjobs_at_once_do_not_meet(tmp_path: Path) -> None:
    """Kubeflow's port is 29500 for all jobs. Here all pods share one network."""

    def runtime(name: str) -> JsonObject:
        node = template(["python", "-c", GANG], name="node", env=[{"name": "GANG", "value": f"the {name} gang"}])
        node["spec"]["restartPolicy"] = "Never"
        jobs = [{"name": "node", "template": {"spec": {"backoffLimit": 0, "template": node}}}]
        spec = {"mlPolicy": {"numNodes": 2, "torch": {}}, "template": {"spec": {"replicatedJobs": jobs}}}
        return {"kind": "TrainingRuntime", "metadata": {"name": name}, "spec": spec}

    def trainjob(name: str) -> JsonObject:
        reference = {"kind": "TrainingRuntime", "name": name}
        return {"kind": "TrainJob", "metadata": {"name": name}, "spec": {"runtimeRef": reference}}

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            client = cluster.client
            assert len(await install_crds(client, crd_files("trainjob"))) == 3
            for name in ("red", "blue"):
                for resource, make in ((TRAINING_RUNTIMES, runtime), (TRAIN_JOBS, trainjob)):
                    body = {"apiVersion": "trainer.kubeflow.org/v1alpha1", **make(name)}
                    await client.create(resource, body, "default")

            async def complete() -> bool:
                jobs = [await client.get(TRAIN_JOBS, name, "default") for name in ("red", "blue")]
                return all(has_condition(job, "Complete", "AllJobsCompleted") for job in jobs)

            await until(complete)
            said = {}
            for pod in await client.list(PODS, "default"):
                name = pod["metadata"]["name"]
                said[name.rpartition("-")[0]] = await log_of(cluster, name, "node")
            assert said == {
                "red-node-0-0": "the red gang: node 1 of 2\n",
                "red-node-0-1": "",
                "blue-node-0-0": "the blue gang: node 1 of 2\n",
                "blue-node-0-1": "",
            }
            await client.delete(TRAIN_JOBS, "red", "default", propagation="Background")

            async def only_blue_is_left() -> bool:
                jobs = [job["metadata"]["name"] for job in await client.list(JOBS, "default")]
                pods = [pod["metadata"]["name"] for pod in await client.list(PODS, "default")]
                return jobs == ["blue-node-0"] and len(pods) == 2

            await until(only_blue_is_left)

    asyncio.run(scenario())


def test_a_claim_of_a_class_that_nobody_provisions_keeps_its_pod_waiting(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            client = cluster.client
            claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
            body = {"metadata": {"name": "data"}, "spec": {**claim, "storageClassName": "fast"}}
            await client.create(CLAIMS, body, "default")
            pod = template(["true"], volumeMounts=[{"name": "data", "mountPath": "/data"}])
            pod["spec"]["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
            pod["spec"]["restartPolicy"] = "Never"
            await client.create(PODS, {"metadata": {"name": "p"}, **pod}, "default")

            async def told() -> bool:
                found = await client.get(PODS, "p", "default")
                scheduled = condition(found, "PodScheduled") or {}
                return "unbound immediate PersistentVolumeClaims" in scheduled.get("message", "")

            await until(told)
            found = await until(lambda: client.list(EVENTS, "default", field_selector="reason=ProvisioningFailed"))
            assert found[0]["message"] == 'storageclass.storage.k8s.io "fast" not found'
            provisioner = {"metadata": {"name": "fast"}, "provisioner": PROVISIONER}
            await client.create(STORAGE_CLASSES, provisioner)

            async def succeeded() -> bool:
                return bool((await client.get(PODS, "p", "default"))["status"]["phase"] == "Succeeded")

            await until(succeeded)

    asyncio.run(scenario())


def test_a_deployment_serves_rolls_out_and_disappears(tmp_path: Path) -> None:
    script = "echo $VERSION > index.html; exec python -m http.server --bind $POD_IP 8080"
    pod_ip = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}

    def pods(version: str) -> JsonObject:
        made = template(
            ["sh", "-c", script],
            env=[pod_ip, {"name": "VERSION", "value": version}],
            ports=[{"name": "http", "containerPort": 8080}],
            readinessProbe={"httpGet": {"port": "http"}, "periodSeconds": 1},
        )
        return {**made, "metadata": {"labels": {"app": "web"}}}

    async def scenario() -> None:
        async with running(tmp_path) as cluster, aiohttp.ClientSession() as session:
            client = cluster.client
            spec = {
                "replicas": 1,
                "strategy": {"type": "RollingUpdate"},
                "selector": {"matchLabels": {"app": "web"}},
                "template": pods("one"),
            }
            body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec}
            await client.create(DEPLOYMENTS, body, "default")
            ports = [{"port": 80, "targetPort": "http"}]
            service = await client.create(
                SERVICES,
                {
                    "apiVersion": "v1",
                    "kind": "Service",
                    "metadata": {"name": "web"},
                    "spec": {"selector": {"app": "web"}, "ports": ports},
                },
                "default",
            )
            url = f"http://{proxy_address(service)}/"

            async def answers(version: str) -> bool:
                try:
                    async with session.get(url) as response:
                        return (await response.text()).strip() == version
                except aiohttp.ClientError:
                    return False

            await until(lambda: answers("one"))
            await client.patch(DEPLOYMENTS, "web", "default", {"spec": {"template": pods("two")}})
            await until(lambda: answers("two"))

            async def is_rolled_out() -> bool:
                status = (await client.get(DEPLOYMENTS, "web", "default"))["status"]
                return status.get("updatedReplicas") == status.get("replicas") == status.get("availableReplicas") == 1

            await until(is_rolled_out)
            await client.delete(DEPLOYMENTS, "web", "default", propagation="Foreground")

            async def is_gone() -> bool:
                kinds = (DEPLOYMENTS, REPLICA_SETS, PODS)
                return not any([await client.list(kind, "default") for kind in kinds])

            await until(is_gone)

    asyncio.run(scenario())


def test_dependents_follow_their_owner_and_orphans_stay(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            client = cluster.client

            async def family(name: str) -> None:
                owner = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
                made = await client.create(CONFIG_MAPS, owner, "default")
                reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": made["metadata"]["uid"]}
                child = {**owner, "metadata": {"name": f"{name}-child", "ownerReferences": [reference]}}
                await client.create(CONFIG_MAPS, child, "default")

            async def is_absent(name: str) -> bool:
                return await get_or_none(client, CONFIG_MAPS, name, "default") is None

            for name in ("background", "foreground", "orphan"):
                await family(name)
            await client.delete(CONFIG_MAPS, "background", "default", propagation="Background")
            await client.delete(CONFIG_MAPS, "foreground", "default", propagation="Foreground")
            await client.delete(CONFIG_MAPS, "orphan", "default", propagation="Orphan")
            for name in ("background-child", "foreground", "foreground-child", "orphan"):
                await until(partial(is_absent, name))
            left = await client.get(CONFIG_MAPS, "orphan-child", "default")
            assert not left["metadata"].get("ownerReferences")
            stray = {"apiVersion": "v1", "kind": "ConfigMap", "name": "never", "uid": "no-such-uid"}
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "s", "ownerReferences": [stray]}}
            await client.create(CONFIG_MAPS, body, "default")
            await until(lambda: is_absent("s"))

    asyncio.run(scenario())


def test_a_deleted_namespace_takes_everything_along(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            client = cluster.client
            await client.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}})

            async def has_root_ca() -> bool:
                return await get_or_none(client, CONFIG_MAPS, "kube-root-ca.crt", "team") is not None

            await until(has_root_ca)
            pod_template = template(["sleep", "60"])
            pod_template["spec"] |= {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1}
            job = {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {"name": "j"},
                "spec": {"template": pod_template},
            }
            await client.create(JOBS, job, "team")

            async def has_pod() -> bool:
                return bool(await client.list(PODS, "team"))

            await until(has_pod)
            await client.delete(NAMESPACES, "team")

            async def is_gone() -> bool:
                return await get_or_none(client, NAMESPACES, "team") is None

            await until(is_gone)
            assert not await client.list(PODS, "team")

    asyncio.run(scenario())


def test_a_pod_waits_for_its_claim_and_keeps_its_data(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            client = cluster.client
            mount = [{"name": "v", "mountPath": "/data"}]
            pod = template(["sh", "-c", "echo kept > /data/file"], volumeMounts=mount)
            pod |= {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}
            pod["spec"] |= {
                "restartPolicy": "Never",
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}],
            }
            await client.create(PODS, pod, "default")

            async def refusal() -> str | None:
                found = await client.get(PODS, "p", "default")
                return next((c["message"] for c in found["status"].get("conditions", []) if c.get("message")), None)

            expected = '0/1 nodes are available: persistentvolumeclaim "data" not found.'
            assert await until(refusal) == expected
            claim = {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": "data"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
            }
            await client.create(CLAIMS, claim, "default")
            path = tmp_path / "volumes" / "default" / "data" / "file"

            async def is_written() -> bool:
                return path.exists() and path.read_text() == "kept\n"

            await until(is_written)
            assert (await client.get(CLAIMS, "data", "default"))["status"]["phase"] == "Bound"

    asyncio.run(scenario())


def test_only_the_admin_may_inject_faults(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            context = ssl.create_default_context(cafile=str(cluster.ca_path))
            connector = aiohttp.TCPConnector(ssl=context)
            url = f"{cluster.url}/devcluster/faults"
            admin = {"Authorization": f"Bearer {cluster.admin_token}"}
            async with aiohttp.ClientSession(connector=connector) as session:
                async with session.post(url, json={"pullErrors": {"any": "down"}}) as refused:
                    assert refused.status == 403
                async with session.post(url, json={"pullErrors": {"any": "down"}}, headers=admin) as accepted:
                    assert (await accepted.json())["pullErrors"] == {"any": "down"}
            assert cluster.faults.pull_error("any:1") == "down"

    asyncio.run(scenario())


def test_an_evicted_pods_job_starts_another_without_counting_a_failure(tmp_path: Path) -> None:
    from wrpo_devcluster.faults import disrupt

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            client = cluster.client
            pods = template(["sleep", "60"])
            pods["spec"] |= {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1}
            rule = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
            job = {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {"name": "j"},
                "spec": {"backoffLimit": 0, "podFailurePolicy": {"rules": [rule]}, "template": pods},
            }
            await client.create(JOBS, job, "default")

            async def running_pod(but: str = "") -> str | None:
                for pod in await client.list(PODS, "default"):
                    if pod["status"]["phase"] == "Running" and pod["metadata"]["name"] != but:
                        return str(pod["metadata"]["name"])
                return None

            first = await until(running_pod)
            await disrupt(client, cluster.clock, "default", first, "PreemptionByScheduler")
            await until(lambda: running_pod(but=first))
            assert "failed" not in (await client.get(JOBS, "j", "default"))["status"]

    asyncio.run(scenario())
