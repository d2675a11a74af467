"""Rendezvous: nodes wait for each other up to a timeout and name the missing ones; threads or real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from support.patience import LIMIT_S, wait_until
from training_support import ROOT, free_port

from wrpo_engine.errors import ConfigError, TemporaryError, WrpoError
from wrpo_engine.training.distributed import rendezvous
from wrpo_engine.training.distributed.rendezvous import Node, meet


def nodes(count: int, port: int | None = None) -> list[Node]:
    chosen = port or free_port()
    return [Node(rank, count, "127.0.0.1", chosen) for rank in range(count)]


def gather(*members: Node, monotonic: Callable[[], float] = time.monotonic) -> dict[int, WrpoError | None]:
    """Let the nodes meet, each in a thread; return what each of them raised."""
    with ThreadPoolExecutor(len(members)) as pool:
        futures: dict[int, Future[None]] = {
            node.rank: pool.submit(meet, node, timeout_s=LIMIT_S, monotonic=monotonic) for node in members
        }
    errors: dict[int, WrpoError | None] = {}
    for rank, future in futures.items():
        error = future.exception()
        assert error is None or isinstance(error, WrpoError)
        errors[rank] = error
    return errors


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_RETRY_S", 0.02)


def test_all_nodes_meet_and_the_port_is_free_when_the_first_of_them_continues() -> None:
    members = nodes(4)
    free_when_told = threading.Event()

    def guest() -> None:
        meet(members[1], timeout_s=LIMIT_S)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", members[0].port)) != 0:
                free_when_told.set()

    thread = threading.Thread(target=guest)
    thread.start()
    assert gather(members[0], members[2], members[3]) == {0: None, 2: None, 3: None}
    thread.join()
    assert free_when_told.is_set()


def test_node_0_waits_for_a_port_that_another_process_uses() -> None:
    members = nodes(2)
    with socket.create_server(("", members[0].port)):
        host = ThreadPoolExecutor(1).submit(meet, members[0], timeout_s=LIMIT_S)
        with pytest.raises(TimeoutError):
            host.result(0.2)
    assert gather(members[1]) == {1: None}
    assert host.exception() is None


def test_a_port_that_another_process_keeps_is_an_error_that_names_it() -> None:
    (node, _) = nodes(2)
    with (
        socket.create_server(("", node.port)),
        pytest.raises(
            TemporaryError, match=f"node 0 cannot listen on port {node.port}: Address already in use"
        ) as error,
    ):
        meet(node, timeout_s=0.1)
    assert (error.value.code, error.value.exit_code) == ("RendezvousPort", 75)


def test_the_missing_nodes_are_named_on_every_node_that_came(caplog: pytest.LogCaptureFixture) -> None:
    members = nodes(5)

    def monotonic() -> float:
        """The time is up when nodes 1 and 3 have connected."""
        return 1000.0 if caplog.text.count("has connected") == 2 else 0.0

    with caplog.at_level("INFO", "wrpo_engine"):
        errors = gather(members[0], members[1], members[3], monotonic=monotonic)
    for error in errors.values():
        assert isinstance(error, TemporaryError)
        assert str(error) == f"2 of 5 nodes have not connected within {LIMIT_S:g} s: node 2, 4"
        assert (error.code, error.exit_code) == ("RendezvousTimeout", 75)


def test_a_master_that_does_not_reply_is_reported() -> None:
    node = nodes(2)[1]
    with pytest.raises(TemporaryError, match=rf"master address 127.0.0.1:{node.port} has not replied for 0.2 s"):
        meet(node, timeout_s=0.2)


def test_unknown_clients_at_the_port_disturb_no_node() -> None:
    members = nodes(2)
    stop = threading.Event()

    def stranger() -> None:
        while not stop.wait(0.01):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", members[0].port)) == 0:
                    probe.sendall(b"GET / HTTP/1.1\r\n\r\n")

    thread = threading.Thread(target=stranger)
    thread.start()
    try:
        host = ThreadPoolExecutor(1).submit(meet, members[0], timeout_s=LIMIT_S)
        assert gather(members[1]) == {1: None}
        assert host.exception() is None
    finally:
        stop.set()
        thread.join()


def test_nodes_of_another_size_or_engine_are_refused_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    errors = gather(Node(0, 2, "127.0.0.1", port), Node(1, 3, "127.0.0.1", port))
    for error in errors.values():
        assert isinstance(error, ConfigError)
        assert "node 1 expects 3 nodes, but node 0 expects 2" in str(error)


INCOMPLETE = {
    "no rank": ({"PET_NNODES": "2", "PET_MASTER_ADDR": "a", "PET_MASTER_PORT": "1"}, "PET_NODE_RANK"),
    "a port that is none": (
        {"PET_NNODES": "2", "PET_NODE_RANK": "0", "PET_MASTER_ADDR": "a", "PET_MASTER_PORT": "x"},
        "PET_MASTER_PORT",
    ),
}


@pytest.mark.parametrize(("environ", "name"), INCOMPLETE.values(), ids=INCOMPLETE.keys())
def test_an_incomplete_environment_names_the_variable(environ: Mapping[str, str], name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Node.of(environ)
    assert caught.value.field == name


@pytest.mark.parametrize("environ", [{}, {"PET_NNODES": "1"}, {"PET_NNODES": "1:4"}])
def test_a_run_of_one_node_needs_no_rendezvous(environ: Mapping[str, str]) -> None:
    assert Node.of(environ) is None


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("ends", ["timeout", "signal"])
def test_the_launcher_ends_its_wait_with_a_code_and_a_termination_message(ends: str, tmp_path: Path) -> None:
    """A real launcher whose peer never comes, and one that is stopped while it waits."""
    from engine_support import stage_config

    params = {"stage": "sft", "model": {"name": "/none"}}
    bound = 1 if ends == "timeout" else 600
    config = tmp_path / "sft.json"
    config.write_text(stage_config(params, runtime={"rendezvous_timeout_seconds": bound}).model_dump_json())
    message = tmp_path / "termination"
    port = free_port()
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PET_NNODES": "2",
        "PET_NODE_RANK": "0",
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
        "WRPO_TERMINATION_MESSAGE_PATH": str(message),
    }
    arguments = [sys.executable, "-m", "wrpo_engine.training.launch", "sft", "--config", str(config)]
    with subprocess.Popen(arguments, env=environ, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        if ends == "signal":
            wait_until("node 0 listens or has ended", lambda: is_open(port) or process.poll() is not None)
            process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=LIMIT_S)
    told = json.loads(message.read_text())
    if ends == "timeout":
        assert process.returncode == 75, errors
        assert "error: 1 of 2 nodes have not connected within 1 s: node 1\n" in errors
        assert (told["outcome"], told["error"]["code"], told["exit_code"]) == ("Failed", "RendezvousTimeout", 75)
    else:
        assert process.returncode == 143, errors
        assert told["outcome"] == "Interrupted"
