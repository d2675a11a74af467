"""The kubelet's pure parts: rewriting of paths and names, pod status, restarts, log lines, volume contents."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.kubelet.environment import expand
from wrpo_devcluster.kubelet.logs import join_parts, parse_lines, render
from wrpo_devcluster.kubelet.rewriting import path_rewriter, rewrite_hosts
from wrpo_devcluster.kubelet.status import (
    ContainerState,
    Ending,
    PodState,
    compose,
    crash_backoff_s,
    phase,
    should_restart,
)
from wrpo_devcluster.kubelet.volumes import File, VolumeError, select_items, write_files

MOUNTS = {"/data": "/s/v/data", "/data/cache/": "/s/v/cache", "/etc/config": "/s/v/config"}

PATHS = {
    "the mount itself": ("/data", "/s/v/data"),
    "below the mount": ("/data/a/b.json", "/s/v/data/a/b.json"),
    "the longest mount wins": ("/data/cache/x", "/s/v/cache/x"),
    "after an equals sign": ("--config=/etc/config/stage.json", "--config=/s/v/config/stage.json"),
    "in a search path": ("/bin:/data/bin:/usr/bin", "/bin:/s/v/data/bin:/usr/bin"),
    "in a script": ("cat /data/x > '/etc/config/y'", "cat /s/v/data/x > '/s/v/config/y'"),
    "as a file URL": ("file:///data/x", "file:///s/v/data/x"),
    "a longer name is another path": ("/database /data-2 /data.txt", "/database /data-2 /data.txt"),
    "the middle of a path is not a mount": ("/srv/data/x", "/srv/data/x"),
    "a URL's path is not a mount": ("http://host/data/x", "http://host/data/x"),
}


@pytest.mark.parametrize(("text", "expected"), PATHS.values(), ids=PATHS.keys())
def test_mount_paths_become_directories_of_this_machine(text: str, expected: str) -> None:
    assert path_rewriter(MOUNTS)(text) == expected


def resolve(name: str) -> str | None:
    return {"web": "127.96.0.1", "web.ns.svc": "127.96.0.1", "train-master-0": "127.64.0.9"}.get(name)


HOSTS = {
    "a variable that is a name": ("train-master-0", True, "127.64.0.9"),
    "an argument that is a word": ("web", False, "web"),
    "a URL": ("http://web:8080/progress", False, "http://127.96.0.1:8080/progress"),
    "a full name": ("https://web.ns.svc/x", False, "https://127.96.0.1/x"),
    "host and port": ("--master=train-master-0:23456", False, "--master=127.64.0.9:23456"),
    "an unknown host": ("http://example.com/web", False, "http://example.com/web"),
    "an address": ("127.0.0.1:80", True, "127.0.0.1:80"),
    "a model id": ("org/web", True, "org/web"),
}


@pytest.mark.parametrize(("text", "bare", "expected"), HOSTS.values(), ids=HOSTS.keys())
def test_service_names_become_addresses(text: str, bare: bool, expected: str) -> None:
    assert rewrite_hosts(text, resolve, allow_bare=bare) == expected


@given(st.text())
def test_text_without_mounts_and_services_stays_as_it_is(text: str) -> None:
    assert path_rewriter({})(text) == text
    assert rewrite_hosts(text, lambda _: None, allow_bare=True) == text


def test_references_are_expanded_as_kubernetes_does() -> None:
    assert expand("$(A) $(B) $$(A) $A $$", {"A": "1"}) == "1 $(B) $(A) $A $"


def make_state(state: JsonObject, *, final: bool = False, started: bool = True) -> ContainerState:
    made = ContainerState("c", "i", state=state, is_final=final)
    made.container_id = "id" if started else ""
    return made


def ended(code: int) -> JsonObject:
    return {"terminated": {"exitCode": code}}


PHASES: dict[str, tuple[list[ContainerState], list[ContainerState], Ending | None, str]] = {
    "not started": ([], [make_state({"waiting": {}}, started=False)], None, "Pending"),
    "init runs": ([make_state({"running": {}})], [make_state({"waiting": {}}, started=False)], None, "Pending"),
    "init failed": (
        [make_state(ended(1), final=True)],
        [make_state({"waiting": {}}, started=False)],
        None,
        "Failed",
    ),
    "runs": ([], [make_state({"running": {}})], None, "Running"),
    "waits to be restarted": ([], [make_state({"waiting": {"reason": "CrashLoopBackOff"}})], None, "Running"),
    "all succeeded": ([], [make_state(ended(0), final=True)], None, "Succeeded"),
    "one failed": ([], [make_state(ended(0), final=True), make_state(ended(2), final=True)], None, "Failed"),
    "one still runs": ([], [make_state(ended(2), final=True), make_state({"running": {}})], None, "Running"),
    "ended from outside": ([], [make_state({"running": {}})], Ending("DeadlineExceeded", ""), "Failed"),
}


@pytest.mark.parametrize(("init", "apps", "ending", "expected"), PHASES.values(), ids=PHASES.keys())
def test_a_pods_phase(
    init: list[ContainerState], apps: list[ContainerState], ending: Ending | None, expected: str
) -> None:
    assert phase(init, apps, ending) == expected


def test_a_status_names_what_is_not_ready() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    status = compose({}, PodState([], [make_state({"running": {}})], "127.64.0.1", "t"), now)
    ready = next(c for c in status["conditions"] if c["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "ContainersNotReady")
    assert ready["message"] == "containers with unready status: [c]"


RESTARTS = {
    "Always restarts a success": ("Always", 0, False, True),
    "Always does not repeat a successful init container": ("Always", 0, True, False),
    "OnFailure restarts a failure": ("OnFailure", 1, False, True),
    "OnFailure leaves a success": ("OnFailure", 0, False, False),
    "Never": ("Never", 1, False, False),
}


@pytest.mark.parametrize(("policy", "code", "is_init", "expected"), RESTARTS.values(), ids=RESTARTS.keys())
def test_what_is_restarted(policy: str, code: int, is_init: bool, expected: bool) -> None:
    assert should_restart(policy, code, is_init=is_init) is expected


def test_crash_backoff_doubles_up_to_five_minutes() -> None:
    assert [crash_backoff_s(n, scale=1) for n in (0, 1, 2, 3, 6, 50)] == [0, 10, 20, 40, 300, 300]


def test_log_lines_are_put_together_from_their_parts() -> None:
    raw = b"T1 stdout P pro\nT2 stdout P gress\nT3 stdout F  done\nT4 stdout P open\nT5 stdout F tor"
    lines = join_parts(parse_lines(raw))
    assert b"".join(render(line, timestamps=False) for line in lines) == b"progress done\nopen"
    assert render(lines[0], timestamps=True) == b"T1 progress done\n"


def test_only_the_items_that_are_named_are_mounted() -> None:
    data = {"a": b"1", "b": b"2"}
    assert select_items("configmap", data, {"items": [{"key": "b", "path": "x/y", "mode": 0o400}]}, 0o644) == {
        "x/y": File(b"2", 0o400)
    }
    with pytest.raises(VolumeError, match="references non-existent config key: c"):
        select_items("configmap", data, {"items": [{"key": "c", "path": "c"}]}, 0o644)
    assert select_items("configmap", None, {"optional": True}, 0o644) == {}


def test_a_volume_holds_exactly_its_files(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": File(b"1"), "b": File(b"2", 0o400)})
    write_files(tmp_path, {"b": File(b"3", 0o400)})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"b": b"3"}
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o400


def test_a_volumes_path_cannot_leave_it(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="leaves the volume"):
        write_files(tmp_path / "v", {"../outside": File(b"")})
