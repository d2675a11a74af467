"""Ports on loopback for servers that others find again after a restart."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress

HOST = "127.0.0.1"
PORTS = range(10_000, 20_000)
"""Below the ports that the system gives to connections, so that none takes the server's port while the server restarts.
SeaweedFS derives further ports by adding 10000 to some."""


def free_ports(count: int) -> list[int]:
    """Return distinct ports on which no process listens."""
    held: list[socket.socket] = []
    ports: list[int] = []
    try:
        while len(ports) < count:
            candidate, port = socket.socket(), secrets.choice(PORTS)
            held.append(candidate)
            with suppress(OSError):
                candidate.bind((HOST, port))
                ports.append(port)
    finally:
        for each in held:
            each.close()
    return ports
