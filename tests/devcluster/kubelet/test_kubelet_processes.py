"""Pods as processes: the process gets what the manifest declares, and its end is reported."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from devcluster.memory_api import MemoryClient
from devcluster.rig import has_condition, until

from wrpo_devcluster.client import CLAIMS, CONFIG_MAPS, EVENTS, PODS, SECRETS, ApiError, JsonObject, LogOptions
from wrpo_devcluster.clock import SystemClock
from wrpo_devcluster.config import ClusterConfig, NodeConfig, default_environment
from wrpo_devcluster.controllers.base import WatchHub
from wrpo_devcluster.faults import Faults
from wrpo_devcluster.kubelet.agent import Kubelet
from wrpo_devcluster.kubelet.context import ApiAccess, Devices, NodeServices
from wrpo_devcluster.kubelet.logs import FileLogReader
from wrpo_devcluster.kubelet.names import NameService, install_tools
from wrpo_devcluster.kubelet.process import ProcessRuntime

NODE = NodeConfig(name="wrpo-dev", cpu="4", memory="8Gi", gpus=2)


class Node:
    """A process kubelet on the in-memory API."""

    def __init__(self, state_dir: Path, client: MemoryClient, **changes: Any) -> None:
        clock = SystemClock()
        self.client = client
        self.faults = Faults()
        self.tokens: list[tuple[Any, ...]] = []
        config = ClusterConfig(
            state_dir=state_dir,
            nodes=(NODE,),
            environment=default_environment(os.environ),
            backoff_scale=0.005,
            volume_refresh_s=0.1,
            images={"worker": (sys.executable, "-c", "print('from the image')")},
        )
        self.config = replace(config, **changes)
        self.hub = WatchHub(client, clock)
        names = NameService(state_dir / "dns")
        names.attach(self.hub)
        api = ApiAccess("127.0.0.1", 6443, state_dir / "pki" / "ca.crt")
        self.runtime = ProcessRuntime(
            NodeServices(
                client=client,
                clock=clock,
                config=self.config,
                api=api,
                names=names,
                faults=self.faults,
                issue_token=self._issue,
                tools_dir=install_tools(state_dir / "bin"),
                devices=Devices(NODE.gpus),
            )
        )
        self.kubelet = Kubelet(client, clock, self.runtime, nodes=frozenset({NODE.name}))
        self.kubelet.attach(self.hub)
        self.logs = FileLogReader(client, clock, self.runtime.log_dir)

    def _issue(self, namespace: str, service_account: str, *, audiences: Any, expires_s: int, pod: Any) -> str:
        self.tokens.append((namespace, service_account, audiences, expires_s))
        return f"token-{len(self.tokens)}"

    async def close(self) -> None:
        await self.kubelet.close()
        await self.hub.close()

    async def log(self, name: str, container: str = "c", **options: Any) -> str:
        return b"".join([part async for part in self.logs.read("ns", name, container, LogOptions(**options))]).decode()

    async def ended(self, name: str) -> JsonObject:
        async def is_over() -> JsonObject | None:
            found = await self.client.get(PODS, name, "ns")
            return found if found["status"].get("phase") in {"Succeeded", "Failed"} else None

        return await until(is_over)

    async def waiting_for(self, name: str, reason: str) -> str:
        async def check() -> str | None:
            found = await self.client.get(PODS, name, "ns")
            for status in found["status"].get("containerStatuses") or []:
                if status["state"].get("waiting", {}).get("reason") == reason:
                    return status["state"]["waiting"].get("message") or "-"
            return None

        return await until(check)

    async def running(self, name: str) -> JsonObject:
        async def check() -> JsonObject | None:
            found = await self.client.get(PODS, name, "ns")
            states = found["status"].get("containerStatuses") or [{"state": {}}]
            return found if all("running" in s["state"] for s in states) else None

        return await until(check)


@asynccontextmanager
async def node(state_dir: Path, **changes: Any) -> AsyncIterator[Node]:
    made = Node(state_dir, MemoryClient(), **changes)
    made.hub.start()
    try:
        yield made
    finally:
        await made.runtime.shutdown()
        await made.close()


def make_pod(
    script: str, *, name: str = "p", restart: str = "Never", container: JsonObject | None = None, **spec: Any
) -> JsonObject:
    main = {"name": "c", "image": "img", "command": ["sh", "-c", script], **(container or {})}
    main = {key: value for key, value in main.items() if value is not None}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "demo"}},
        "spec": {
            "nodeName": NODE.name,
            "restartPolicy": restart,
            "terminationGracePeriodSeconds": 60,
            "containers": [main],
            **spec,
        },
    }


async def run_pod(state_dir: Path, pod: JsonObject, *objects: tuple[Any, JsonObject]) -> tuple[JsonObject, str]:
    """Run a pod to its end; return its terminated state and its log."""
    async with node(state_dir) as one:
        for resource, body in objects:
            await one.client.create(resource, body, "ns")
        await one.client.create(PODS, pod, "ns")
        done = await one.ended("p")
        state = done["status"]["containerStatuses"][0]["state"]["terminated"]
        return {**state, "phase": done["status"]["phase"]}, await one.log("p")


EXITS: dict[str, tuple[str, JsonObject]] = {
    "success": ("exit 0", {"exitCode": 0, "reason": "Completed", "phase": "Succeeded"}),
    "an exit code of the program": ("exit 65", {"exitCode": 65, "reason": "Error", "phase": "Failed"}),
    "a signal is 128 and its number": ("kill -TERM $$$$", {"exitCode": 143, "signal": 15, "phase": "Failed"}),
    "killed by hand": ("kill -KILL $$$$", {"exitCode": 137, "signal": 9, "phase": "Failed"}),
    "a process left behind does not outlive the container": (
        "sleep 300 & exit 3",
        {"exitCode": 3, "phase": "Failed"},
    ),
}


@pytest.mark.parametrize(("script", "expected"), EXITS.values(), ids=EXITS.keys())
def test_how_a_process_ends_is_reported(tmp_path: Path, script: str, expected: JsonObject) -> None:
    state, _ = asyncio.run(run_pod(tmp_path, make_pod(script)))
    assert {name: state.get(name) for name in expected} == expected


def test_a_command_that_does_not_exist_says_so(tmp_path: Path) -> None:
    state, _ = asyncio.run(run_pod(tmp_path, make_pod("", container={"command": ["no-such-program"]})))
    assert (state["exitCode"], state["reason"]) == (128, "StartError")
    assert state["message"].startswith('exec: "no-such-program": executable file not found in $PATH')


def test_the_termination_message_comes_from_the_file_the_variable_names(tmp_path: Path) -> None:
    container = {
        "env": [{"name": "MESSAGE_FILE", "value": "/dev/termination-log"}],
        "terminationMessagePath": "/dev/termination-log",
    }
    state, _ = asyncio.run(run_pod(tmp_path, make_pod('echo out; printf done > "$MESSAGE_FILE"', container=container)))
    assert state["message"] == "done"


def test_a_failed_container_without_message_falls_back_to_its_log(tmp_path: Path) -> None:
    pod = make_pod("echo broken; exit 1", container={"terminationMessagePolicy": "FallbackToLogsOnError"})
    state, _ = asyncio.run(run_pod(tmp_path, pod))
    assert state["message"] == "broken\n"


def test_environment_is_expanded_and_referenced(tmp_path: Path) -> None:
    container = {
        "env": [
            {"name": "A", "value": "1"},
            {"name": "B", "value": "$(A)-$(MISSING)-$$(A)"},
            {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
            {"name": "FROM_MAP", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}},
            {"name": "FROM_SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        ],
        "envFrom": [{"configMapRef": {"name": "m"}, "prefix": "M_"}],
        "resources": {"limits": {"cpu": "1500m", "nvidia.com/gpu": "1"}},
    }
    given = "A B NAME APP CPU FROM_MAP FROM_SECRET M_k"
    names = f"{given} OMP_NUM_THREADS OMP_WAIT_POLICY CUDA_VISIBLE_DEVICES GLOO_SOCKET_IFNAME"
    script = "".join(f'echo "{n}=${n}";' for n in names.split()) + 'case "$IP" in 127.64.*) echo ip-ok;; esac'
    objects = [
        (CONFIG_MAPS, {"metadata": {"name": "m"}, "data": {"k": "map"}}),
        (SECRETS, {"metadata": {"name": "s"}, "data": {"k": base64.b64encode(b"hidden").decode()}}),
    ]
    _, log = asyncio.run(run_pod(tmp_path, make_pod(script, container=container), *objects))
    assert log.splitlines() == [
        "A=1",
        "B=1-$(MISSING)-$(A)",
        "NAME=p",
        "APP=demo",
        "CPU=2",
        "FROM_MAP=map",
        "FROM_SECRET=hidden",
        "M_k=map",
        "OMP_NUM_THREADS=2",
        "OMP_WAIT_POLICY=PASSIVE",
        "CUDA_VISIBLE_DEVICES=0",
        "GLOO_SOCKET_IFNAME=lo",
        "ip-ok",
    ]


def test_volumes_are_where_command_arguments_and_variables_say(tmp_path: Path) -> None:
    container = {
        "command": ["sh", "-c", 'cat /etc/config/app.json "$TOKEN"; cp /etc/one/file /data/out; cat "${1#--out=}"'],
        "args": ["sh", "--out=/data/out"],
        "env": [{"name": "TOKEN", "value": "/var/run/tokens/token"}],
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/config"},
            {"name": "config", "mountPath": "/etc/one/file", "subPath": "app.json"},
            {"name": "data", "mountPath": "/data", "subPath": "run"},
            {"name": "tokens", "mountPath": "/var/run/tokens"},
        ],
    }
    volumes = [
        {"name": "config", "configMap": {"name": "m", "items": [{"key": "k", "path": "app.json"}]}},
        {"name": "data", "persistentVolumeClaim": {"claimName": "claim"}},
        {
            "name": "tokens",
            "projected": {
                "sources": [{"serviceAccountToken": {"path": "token", "audience": "wrpo.ai", "expirationSeconds": 600}}]
            },
        },
    ]
    objects = [
        (CONFIG_MAPS, {"metadata": {"name": "m"}, "data": {"k": "{}\n", "other": "x"}}),
        (CLAIMS, {"metadata": {"name": "claim"}, "spec": {}}),
    ]
    state, log = asyncio.run(run_pod(tmp_path, make_pod("", container=container, volumes=volumes), *objects))
    assert (state["exitCode"], log) == (0, "{}\ntoken-1{}\n")
    assert (tmp_path / "volumes" / "ns" / "claim" / "run" / "out").read_text() == "{}\n"


REFUSED_CONFIG: dict[str, tuple[JsonObject, str]] = {
    "a ConfigMap that does not exist": (
        {"name": "V", "valueFrom": {"configMapKeyRef": {"name": "gone", "key": "k"}}},
        'configmap "gone" not found',
    ),
    "a key that does not exist": (
        {"name": "V", "valueFrom": {"secretKeyRef": {"name": "s", "key": "nope"}}},
        "couldn't find key nope in Secret ns/s",
    ),
}


@pytest.mark.parametrize(("entry", "message"), REFUSED_CONFIG.values(), ids=REFUSED_CONFIG.keys())
def test_missing_configuration_waits_and_says_what_is_missing(tmp_path: Path, entry: JsonObject, message: str) -> None:
    async def scenario() -> tuple[str, str]:
        async with node(tmp_path) as one:
            await one.client.create(SECRETS, {"metadata": {"name": "s"}, "data": {}}, "ns")
            await one.client.create(PODS, make_pod('echo "$V"', container={"env": [entry]}), "ns")
            said = await one.waiting_for("p", "CreateContainerConfigError")
            await one.client.create(CONFIG_MAPS, {"metadata": {"name": "gone"}, "data": {"k": "here"}}, "ns")
            await one.client.patch(SECRETS, "s", "ns", {"data": {"nope": base64.b64encode(b"here").decode()}})
            await one.ended("p")
            return said, await one.log("p")

    assert asyncio.run(scenario()) == (message, "here\n")


def test_a_container_waits_until_the_peer_that_it_names_has_an_address(tmp_path: Path) -> None:
    """In a cluster a program queries DNS again. Here names are replaced once, at the start."""
    peer = {"env": [{"name": "PEER", "value": "first.gang"}, {"name": "SELF", "value": "second.gang"}]}

    async def scenario() -> tuple[str, JsonObject, JsonObject]:
        async with node(tmp_path) as one:
            second = make_pod('echo "$PEER $SELF"', container=peer, hostname="second", subdomain="gang")
            await one.client.create(PODS, second, "ns")
            await one.waiting_for("p", "ContainerCreating")
            first = make_pod("exec sleep 60", name="first", subdomain="gang")
            await one.client.create(PODS, first, "ns")
            done = await one.ended("p")
            return await one.log("p"), done, await one.client.get(PODS, "first", "ns")

    log, done, first = asyncio.run(scenario())
    assert log.split() == [first["status"]["podIP"], done["status"]["podIP"]]
    assert first["status"]["startTime"] >= done["status"]["startTime"]


def test_a_container_whose_peer_never_comes_starts_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wrpo_devcluster.kubelet.container_run.NAMES_PATIENCE", timedelta(seconds=0.2))
    peer = {"env": [{"name": "PEER", "value": "first.gang.ns.svc"}]}
    _, log = asyncio.run(run_pod(tmp_path, make_pod('echo "$PEER"', container=peer, subdomain="gang")))
    assert log == "first.gang.ns.svc\n"


def test_an_unknown_image_without_a_command_cannot_be_pulled(tmp_path: Path) -> None:
    async def scenario() -> str:
        async with node(tmp_path) as one:
            await one.client.create(PODS, make_pod("", container={"command": None, "image": "ghcr.io/x/y:1"}), "ns")
            return await one.waiting_for("p", "ErrImagePull")

    assert asyncio.run(scenario()) == (
        'image "ghcr.io/x/y:1" is unknown: containers run as processes of this machine, so a container needs '
        "a command, or its image an entrypoint in the cluster's configuration (known images: worker)"
    )


def test_an_image_may_have_an_entrypoint(tmp_path: Path) -> None:
    _, log = asyncio.run(run_pod(tmp_path, make_pod("", container={"command": None, "image": "ghcr.io/x/worker:1"})))
    assert log == "from the image\n"


def test_a_crashing_container_is_restarted_with_growing_pauses(tmp_path: Path) -> None:
    async def scenario() -> tuple[str, str, str]:
        async with node(tmp_path, backoff_scale=0.02) as one:
            await one.client.create(PODS, make_pod("echo run; exit 1", restart="Always"), "ns")
            said = await one.waiting_for("p", "CrashLoopBackOff")
            found = await one.client.get(PODS, "p", "ns")
            status = found["status"]["containerStatuses"][0]
            assert status["restartCount"] >= 1
            assert status["lastState"]["terminated"]["exitCode"] == 1
            reasons = {e["reason"] for e in await one.client.list(EVENTS, "ns")}
            assert {"Pulled", "Created", "Started", "BackOff"} <= reasons
            return said, await one.log("p", previous=True), found["status"]["phase"]

    said, previous, phase = asyncio.run(scenario())
    assert said.startswith("back-off 0.2s restarting failed container=c pod=p_ns(")
    assert (previous, phase) == ("run\n", "Running")


def test_init_containers_run_first_and_a_failed_one_fails_the_pod(tmp_path: Path) -> None:
    init: list[JsonObject] = [
        {"name": "one", "image": "i", "command": ["sh", "-c", "echo first > /shared/x"], "volumeMounts": []},
        {"name": "two", "image": "i", "command": ["sh", "-c", "exit 4"]},
    ]
    mount = [{"name": "s", "mountPath": "/shared"}]
    init[0]["volumeMounts"] = mount

    async def scenario() -> JsonObject:
        async with node(tmp_path) as one:
            pod = make_pod("echo never", initContainers=init, volumes=[{"name": "s", "emptyDir": {}}])
            await one.client.create(PODS, pod, "ns")
            return (await one.ended("p"))["status"]

    status = asyncio.run(scenario())
    codes = [s["state"]["terminated"]["exitCode"] for s in status["initContainerStatuses"]]
    assert (status["phase"], codes) == ("Failed", [0, 4])
    assert status["containerStatuses"][0]["state"] == {"waiting": {"reason": "PodInitializing"}}


SAVER = """
import os, signal, sys, time

def save(*_):
    # Not print: the signal may come before the print of "up" has returned.
    os.write(1, b"saved\\n")
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
print("up", flush=True)
time.sleep(60)
"""


def test_deletion_sends_sigterm_and_waits(tmp_path: Path) -> None:
    (tmp_path / "saver.py").write_text(SAVER)

    async def scenario() -> list[str]:
        async with node(tmp_path) as one:
            seen: list[str] = []
            await one.client.create(PODS, make_pod(f"exec {sys.executable} {tmp_path}/saver.py"), "ns")

            async def is_up() -> bool:
                try:
                    return await one.log("p") == "up\n"
                except ApiError:
                    return False

            await until(is_up)
            directory = one.runtime.log_dir((await one.client.get(PODS, "p", "ns"))["metadata"]["uid"], "c")
            watch = one.client.watch(PODS)
            await one.client.delete(PODS, "p", "ns")
            async for event in watch:
                if event.type == "DELETED":
                    break
                states = event.object["status"].get("containerStatuses") or [{"state": {}}]
                if "terminated" in states[0]["state"]:
                    seen.append(f"{states[0]['state']['terminated']['exitCode']}")

            async def is_removed() -> bool:
                return not directory.exists()

            await until(is_removed)
            return seen

    assert asyncio.run(scenario())[-1] == "143"


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace_period(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with node(tmp_path) as one:
            pod = make_pod("trap '' TERM; echo up; while :; do sleep 0.1; done", terminationGracePeriodSeconds=1)
            await one.client.create(PODS, pod, "ns")
            await one.running("p")
            await one.client.delete(PODS, "p", "ns")

            async def is_gone() -> bool:
                return not await one.client.list(PODS, "ns")

            await until(is_gone)

    asyncio.run(scenario())


def test_a_pod_past_its_deadline_fails(tmp_path: Path) -> None:
    async def scenario() -> JsonObject:
        async with node(tmp_path) as one:
            await one.client.create(PODS, make_pod("sleep 60", activeDeadlineSeconds=1), "ns")
            return (await one.ended("p"))["status"]

    status = asyncio.run(scenario())
    assert (status["phase"], status["reason"]) == ("Failed", "DeadlineExceeded")


def test_probes_decide_readiness_and_restart_a_dead_container(tmp_path: Path) -> None:
    probe = {"periodSeconds": 0.05, "failureThreshold": 2}
    container = {
        "readinessProbe": {"exec": {"command": ["test", "-e", str(tmp_path / "ready")]}, **probe},
        "livenessProbe": {"exec": {"command": ["test", "!", "-e", str(tmp_path / "dead")]}, **probe},
    }

    async def scenario() -> int:
        async with node(tmp_path) as one:
            await one.client.create(PODS, make_pod("exec sleep 60", restart="Always", container=container), "ns")
            assert not has_condition(await one.running("p"), "Ready")
            (tmp_path / "ready").touch()

            async def is_ready() -> bool:
                return has_condition(await one.client.get(PODS, "p", "ns"), "Ready")

            await until(is_ready)
            (tmp_path / "dead").touch()

            async def restarts() -> int:
                found = await one.client.get(PODS, "p", "ns")
                return int(found["status"]["containerStatuses"][0]["restartCount"])

            count = await until(restarts)
            (tmp_path / "dead").unlink()
            return int(count)

    assert asyncio.run(scenario()) >= 1


def test_a_changed_config_map_reaches_the_running_pod(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with node(tmp_path) as one:
            await one.client.create(CONFIG_MAPS, {"metadata": {"name": "m"}, "data": {"k": "old"}}, "ns")
            container = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
            pod = make_pod(
                "until grep -q new /v/k; do sleep 0.05; done",
                container=container,
                volumes=[{"name": "v", "configMap": {"name": "m"}}],
            )
            await one.client.create(PODS, pod, "ns")
            await one.running("p")
            await one.client.patch(CONFIG_MAPS, "m", "ns", {"data": {"k": "new"}})
            assert (await one.ended("p"))["status"]["phase"] == "Succeeded"

    asyncio.run(scenario())


def test_a_kubelet_that_starts_again_takes_over_running_pods(tmp_path: Path) -> None:
    async def scenario() -> tuple[JsonObject, str]:
        client = MemoryClient()
        first = Node(tmp_path, client)
        first.hub.start()
        script = f"echo one; until [ -e {tmp_path}/go ]; do sleep 0.02; done; echo two; exit 7"
        await client.create(PODS, make_pod(script), "ns")
        before = await first.running("p")
        await first.close()
        second = Node(tmp_path, client)
        second.hub.start()
        try:
            (tmp_path / "go").touch()
            done = await second.ended("p")
            assert done["status"]["podIP"] == before["status"]["podIP"]
            return done["status"]["containerStatuses"][0], await second.log("p")
        finally:
            await second.close()

    status, log = asyncio.run(scenario())
    assert (status["state"]["terminated"]["exitCode"], status["restartCount"], log) == (7, 0, "one\ntwo\n")


def test_a_pod_whose_processes_vanished_while_nobody_looked_is_a_disruption(tmp_path: Path) -> None:
    async def scenario() -> JsonObject:
        client = MemoryClient()
        first = Node(tmp_path, client)
        first.hub.start()
        await client.create(PODS, make_pod("exec sleep 300"), "ns")
        found = await first.running("p")
        await first.close()
        record = json.loads((first.runtime.log_dir(found["metadata"]["uid"], "c") / "0.pid.json").read_text())
        os.kill(record["shim_pid"], signal.SIGKILL)
        os.waitpid(record["shim_pid"], 0)  # noqa: ASYNC222
        second = Node(tmp_path, client)
        second.hub.start()
        try:
            return await second.ended("p")
        finally:
            await second.close()

    pod = asyncio.run(scenario())
    assert has_condition(pod, "DisruptionTarget", "TerminationByKubelet")
    assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 137


def test_killing_a_pods_process_by_hand_is_exit_137(tmp_path: Path) -> None:
    async def scenario() -> JsonObject:
        async with node(tmp_path) as one:
            await one.client.create(PODS, make_pod("exec sleep 300"), "ns")
            found = await one.running("p")
            record = json.loads((one.runtime.log_dir(found["metadata"]["uid"], "c") / "0.pid.json").read_text())
            os.kill(record["pid"], signal.SIGKILL)
            return (await one.ended("p"))["status"]["containerStatuses"][0]["state"]["terminated"]

    assert asyncio.run(scenario())["exitCode"] == 137


def test_logs_follow_tail_and_carry_times(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with node(tmp_path) as one:
            script = f"echo a; echo b; until [ -e {tmp_path}/go ]; do sleep 0.02; done; printf c; sleep 0.1; echo d"
            await one.client.create(PODS, make_pod(script), "ns")
            await one.running("p")

            async def two_lines() -> bool:
                return await one.log("p") == "a\nb\n"

            await until(two_lines)
            assert await one.log("p", tail_lines=1) == "b\n"
            following = asyncio.create_task(one.log("p", follow=True))
            await asyncio.sleep(0.05)
            (tmp_path / "go").touch()
            assert await following == "a\nb\ncd\n"
            stamped = await one.log("p", timestamps=True)
            assert stamped.splitlines()[0].endswith("Z a")
            with pytest.raises(ApiError, match='previous terminated container "c" in pod "p" not found'):
                await one.log("p", previous=True)

    asyncio.run(scenario())


def test_an_injected_pull_error_goes_away_when_the_fault_does(tmp_path: Path) -> None:
    async def scenario() -> tuple[str, str]:
        async with node(tmp_path) as one:
            one.faults.pull_errors["img"] = "registry is down"
            await one.client.create(PODS, make_pod("exit 0"), "ns")
            said = await one.waiting_for("p", "ImagePullBackOff")
            one.faults.pull_errors.clear()
            return said, (await one.ended("p"))["status"]["phase"]

    said, phase = asyncio.run(scenario())
    assert said == 'Back-off pulling image "img": ErrImagePull: registry is down'
    assert phase == "Succeeded"


def test_a_node_that_is_shut_down_reports_its_pods_as_disrupted(tmp_path: Path) -> None:
    async def scenario() -> tuple[JsonObject, JsonObject]:
        async with node(tmp_path) as one:
            await one.client.create(PODS, make_pod("exec sleep 300"), "ns")
            await one.client.create(PODS, make_pod("exec sleep 300", name="server", restart="Always"), "ns")
            await one.running("p")
            await one.running("server")
            await one.runtime.shutdown()
            return await one.client.get(PODS, "p", "ns"), await one.client.get(PODS, "server", "ns")

    job_pod, server = asyncio.run(scenario())
    assert has_condition(job_pod, "DisruptionTarget", "TerminationByKubelet")
    assert job_pod["status"]["message"] == "Pod was terminated in response to imminent node shutdown."
    assert server["status"]["phase"] == "Running"


def test_hooks_run_after_the_start_and_before_the_end(tmp_path: Path) -> None:
    hooks = {
        name: {"exec": {"command": ["sh", "-c", f"echo {name} >> {tmp_path}/hooks"]}}
        for name in ("postStart", "preStop")
    }

    async def scenario() -> None:
        async with node(tmp_path) as one:
            await one.client.create(PODS, make_pod("exec sleep 300", container={"lifecycle": hooks}), "ns")
            await one.running("p")
            await one.client.delete(PODS, "p", "ns")

            async def is_gone() -> bool:
                return not await one.client.list(PODS, "ns")

            await until(is_gone)

    asyncio.run(scenario())
    assert (tmp_path / "hooks").read_text() == "postStart\npreStop\n"


def test_a_sidecar_is_refused_with_a_remedy(tmp_path: Path) -> None:
    sidecar = {"name": "s", "image": "i", "command": ["true"], "restartPolicy": "Always"}

    async def scenario() -> str:
        async with node(tmp_path) as one:
            await one.client.create(PODS, make_pod("true", initContainers=[sidecar]), "ns")

            async def message() -> str | None:
                found = await one.client.get(PODS, "p", "ns")
                states = found["status"].get("initContainerStatuses") or [{"state": {}}]
                return states[0]["state"].get("waiting", {}).get("message")

            return await until(message)

    assert asyncio.run(scenario()) == (
        'container "s" sets restartPolicy (a sidecar), which pods as processes do not have; '
        "make it a container of the pod, or remove restartPolicy"
    )


def test_only_the_last_two_runs_of_a_crashing_container_are_kept(tmp_path: Path) -> None:
    async def scenario() -> set[str]:
        async with node(tmp_path, backoff_scale=0.001) as one:
            await one.client.create(PODS, make_pod("exit 1", restart="Always"), "ns")

            async def third_restart() -> JsonObject | None:
                found = await one.client.get(PODS, "p", "ns")
                statuses = found["status"].get("containerStatuses") or [{"restartCount": 0}]
                return found if statuses[0]["restartCount"] >= 3 else None

            found = await until(third_restart)
            directory = one.runtime.log_dir(found["metadata"]["uid"], "c")
            return {path.name for path in directory.glob("[01].log")}

    assert asyncio.run(scenario()) == set()
