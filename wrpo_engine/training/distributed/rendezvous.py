"""Rendezvous of a run's nodes before torchrun starts, with a timeout whose error lists the missing nodes.

Node 0 listens on torchrun's port. Every other node sends a hello and waits for the reply. When all nodes have
connected, node 0 first closes the port and then replies, so that no node mistakes this rendezvous for torchrun's. A
node that is late, runs another engine version or expects another number of nodes receives the reason.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import select
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from wrpo_engine import __version__
from wrpo_engine.errors import ConfigError, TemporaryError

_LOG = logging.getLogger("wrpo_engine")
_RETRY_S = 0.5
_LINE_LIMIT = 4096
_HELLO_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Node:
    """A node's rank and the run's rendezvous address, from torchrun's environment (PET_*)."""

    rank: int
    num_nodes: int
    address: str
    """Host name or IP address of node 0."""
    port: int

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Node | None:
        """Return the node, or None if the run has one node; raise ConfigError for an incomplete environment."""
        count = environ.get("PET_NNODES", "1")
        if not count.isdigit() or int(count) < 2:
            return None
        values = {name: environ.get(f"PET_{name}", "") for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")}
        for name, value in values.items():
            if not value or (name != "MASTER_ADDR" and not value.isdigit()):
                raise ConfigError(
                    f"PET_{name}",
                    value,
                    f"a run of {count} nodes needs it",
                    "Kubeflow's controllers set it in pods; set it yourself when you start the nodes by hand.",
                )
        return cls(int(values["NODE_RANK"]), int(count), values["MASTER_ADDR"], int(values["MASTER_PORT"]))


@dataclass(frozen=True, slots=True)
class _Hello:
    rank: int
    num_nodes: int
    version: str


def meet(node: Node, *, timeout_s: float, monotonic: Callable[[], float] = time.monotonic) -> None:
    """Return when all nodes have connected.

    TemporaryError lists the nodes that are missing after `timeout_s` seconds; ConfigError names a mismatch.
    """
    deadline = monotonic() + timeout_s
    if node.rank == 0:
        _Host(node, deadline, timeout_s, monotonic).run()
    else:
        _join(node, deadline, timeout_s, monotonic)


class _Host:
    """The side of node 0."""

    def __init__(self, node: Node, deadline: float, timeout_s: float, monotonic: Callable[[], float]) -> None:
        self._node = node
        self._deadline = deadline
        self._timeout_s = timeout_s
        self._monotonic = monotonic
        self._guests: dict[int, socket.socket] = {}

    def run(self) -> None:
        try:
            with self._listen() as listener:
                self._collect(listener)
            self._send(self._guests.values(), {"go": True})
        finally:
            for guest in self._guests.values():
                guest.close()

    def _listen(self) -> socket.socket:
        """Listen on the port; wait for it while another process uses it, e.g. a gang that is about to end."""
        while True:
            try:
                return socket.create_server(("", self._node.port), backlog=self._node.num_nodes, reuse_port=False)
            except OSError as error:
                if error.errno == errno.EADDRINUSE and self._monotonic() < self._deadline:
                    time.sleep(_RETRY_S)
                    continue
                raise TemporaryError(
                    f"node 0 cannot listen on port {self._node.port}: {error.strerror}",
                    code="RendezvousPort",
                    hint="Another process of the pod or host uses the port. The next attempt tries again.",
                ) from error

    def _collect(self, listener: socket.socket) -> None:
        expected = set(range(1, self._node.num_nodes))
        while missing := sorted(expected - set(self._guests)):
            left = self._deadline - self._monotonic()
            if left <= 0:
                error = _missing_nodes(missing, self._node.num_nodes, self._timeout_s)
                self._send(self._guests.values(), {"error": error.message})
                raise error
            ready, _, _ = select.select([listener, *self._guests.values()], [], [], min(left, 1.0))
            for one in ready:
                if one is listener:
                    self._greet(listener.accept()[0])
                else:
                    # A guest that closes its connection has died; its next attempt may still be in time.
                    self._forget(one)

    def _greet(self, guest: socket.socket) -> None:
        guest.settimeout(_HELLO_TIMEOUT_S)
        try:
            hello = _Hello(**_receive(guest))
        except (OSError, ValueError, TypeError):
            # Probes and port scanners also connect to open ports.
            guest.close()
            return
        problem = self._problem(hello)
        if problem is not None:
            self._send([guest, *self._guests.values()], {"error": problem, "final": True})
            guest.close()
            raise _mismatch(problem)
        if hello.rank in self._guests:
            self._guests[hello.rank].close()
        self._guests[hello.rank] = guest
        _LOG.info("node %d of %d has connected", hello.rank, self._node.num_nodes)

    def _problem(self, hello: _Hello) -> str | None:
        if hello.num_nodes != self._node.num_nodes:
            return f"node {hello.rank} expects {hello.num_nodes} nodes, but node 0 expects {self._node.num_nodes}"
        if hello.version != __version__:
            return f"node {hello.rank} runs engine {hello.version}, but node 0 runs {__version__}"
        if not 0 < hello.rank < self._node.num_nodes:
            return f"a node has rank {hello.rank}, but the ranks of other nodes are 1 to {self._node.num_nodes - 1}"
        return None

    def _forget(self, guest: socket.socket) -> None:
        for rank, known in list(self._guests.items()):
            if known is guest:
                guest.close()
                del self._guests[rank]

    @staticmethod
    def _send(guests: Any, message: Mapping[str, Any]) -> None:
        for guest in guests:
            with contextlib.suppress(OSError):
                guest.sendall(_line(message))


def _join(node: Node, deadline: float, timeout_s: float, monotonic: Callable[[], float]) -> None:
    """Connect to node 0, send the hello and wait for the reply; retry if node 0 closes the connection."""
    last = "no connection was tried"
    while (left := deadline - monotonic()) > 0:
        try:
            with socket.create_connection((node.address, node.port), timeout=min(left, 10.0)) as host:
                host.sendall(_line(asdict(_Hello(node.rank, node.num_nodes, __version__))))
                # Node 0 may have started later than this node and therefore wait longer.
                host.settimeout(left + timeout_s)
                reply = _receive(host)
        except (OSError, ValueError) as error:
            last = str(error)
            time.sleep(min(_RETRY_S, max(0.0, deadline - monotonic())))
            continue
        if reply.get("go"):
            return
        problem = str(reply.get("error", "node 0 refused without a reason"))
        if reply.get("final"):
            raise _mismatch(problem)
        raise TemporaryError(problem, code="RendezvousTimeout", hint=_HINT)
    raise TemporaryError(
        f"node {node.rank}: the master address {node.address}:{node.port} has not replied for {timeout_s:g} s ({last})",
        code="RendezvousTimeout",
        hint="Check the pod of node 0: it may be pending or have failed, or a network policy may block the port.",
    )


_HINT = "Check the missing nodes' pods: they may be pending or have failed. The next attempt waits for all nodes again."


def _missing_nodes(missing: list[int], num_nodes: int, timeout_s: float) -> TemporaryError:
    names = ", ".join(str(rank) for rank in missing)
    return TemporaryError(
        f"{len(missing)} of {num_nodes} nodes have not connected within {timeout_s:g} s: node {names}",
        code="RendezvousTimeout",
        hint=_HINT,
    )


def _mismatch(problem: str) -> ConfigError:
    return ConfigError(
        "training.nodes",
        problem,
        "all nodes of a run must have the same engine version and number of nodes",
        "Use the same image and the same number of nodes in all pods of the run.",
    )


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _receive(connection: socket.socket) -> dict[str, Any]:
    """Read one line of JSON; ValueError if it is not JSON, OSError if the peer is gone or silent."""
    data = b""
    while not data.endswith(b"\n"):
        part = connection.recv(_LINE_LIMIT)
        if not part:
            raise ConnectionError("the peer closed the connection")
        data += part
        if len(data) > _LINE_LIMIT:
            raise ValueError(f"the line is longer than {_LINE_LIMIT} bytes")
    message = json.loads(data)
    if not isinstance(message, dict):
        raise ConnectionError("the peer is not a wrpo rendezvous server (protocol mismatch)")
    return message
