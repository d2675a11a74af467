"""The chart's certificate: stages with its authority reach the endpoint under its Service's name, and nobody else."""

from __future__ import annotations

import base64
import socket
import ssl
import subprocess
import sys
import threading
import urllib.error
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from chart_support import JsonObject, one, render
from support.patience import LIMIT_S

from wrpo_engine.process.progress import Endpoint
from wrpo_operator.runtime.tls import ServerCertificate

HOST = "wrpo-operator.wrpo-system.svc"


def secret(objects: list[JsonObject]) -> dict[str, bytes]:
    data = one(objects, "Secret", "wrpo-operator-progress-tls")["data"]
    return {name: base64.b64decode(text) for name, text in data.items()}


def environment(objects: list[JsonObject]) -> dict[str, str]:
    container = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    return {entry["name"]: entry.get("value", "") for entry in container["env"]}


class Refuses(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(401)
        self.end_headers()

    def log_message(self, *_arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tls")
    for name, content in secret(render()).items():
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture(scope="module")
def port(files: Path) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    context = ServerCertificate(files / "tls.crt", files / "tls.key").context
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every name lead to this machine, as the cluster's name service would lead to the operator."""
    real = socket.getaddrinfo

    def here(_host: str, *rest: Any, **more: Any) -> Any:
        return real("127.0.0.1", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", here)


@pytest.mark.usefixtures("resolved")
def test_a_stage_with_the_authority_gets_an_answer(files: Path, port: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as answered:
        Endpoint(f"https://{HOST}:{port}/v1", None, files / "ca.crt").post({})
    assert answered.value.code == 401


@pytest.mark.usefixtures("resolved")
def test_another_name_or_another_authority_is_not_trusted(files: Path, port: int, tmp_path: Path) -> None:
    other = tmp_path / "ca.crt"
    other.write_bytes(secret(render(namespace="elsewhere"))["ca.crt"])
    for url, authority in ((f"https://other.svc:{port}", files / "ca.crt"), (f"https://{HOST}:{port}", other)):
        with pytest.raises(urllib.error.URLError) as refusal:
            Endpoint(url, None, authority).post({})
        assert isinstance(refusal.value.reason, ssl.SSLCertVerificationError)


def test_the_helm_test_runs_its_check_over_tls(files: Path, port: int) -> None:
    pod = one(render(), "Pod", "wrpo-operator-test")
    (container,) = pod["spec"]["containers"]
    interpreter, flag, script, url, ca = container["command"]
    assert (interpreter, flag, url) == ("python", "-c", f"https://{HOST}:8081")
    assert ca == f"{container['volumeMounts'][0]['mountPath']}/ca.crt"
    # The same code, with the name resolved to this machine.
    here = "import socket as s; r = s.getaddrinfo; s.getaddrinfo = lambda h, *a, **k: r('127.0.0.1', *a, **k)\n"
    command = [sys.executable, flag, here + script, f"https://{HOST}:{port}", str(files / "ca.crt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_operator_is_given_the_mounted_files() -> None:
    objects = render()
    env = environment(objects)
    assert env["WRPO_PROGRESS_URL"] == f"https://{HOST}:8081"
    pod = one(objects, "Deployment")["spec"]["template"]["spec"]
    mount = next(m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "progress-tls")
    keys = {Path(env[name]).name for name in env if name.endswith("_FILE")}
    assert {str(Path(env[name]).parent) for name in env if name.endswith("_FILE")} == {mount["mountPath"]}
    assert keys == set(secret(objects))
    volume = next(v for v in pod["volumes"] if v["name"] == "progress-tls")
    assert volume["secret"]["secretName"] == "wrpo-operator-progress-tls"
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]


def test_an_existing_secret_is_used_and_none_is_made() -> None:
    objects = render('progress={"tls":{"existingSecret":"mine"}}')
    assert not [obj for obj in objects if obj["kind"] == "Secret"]
    volumes = one(objects, "Deployment")["spec"]["template"]["spec"]["volumes"]
    assert {"name": "progress-tls", "secret": {"secretName": "mine", "defaultMode": 0o440}} in volumes


def test_tls_can_be_turned_off() -> None:
    objects = render('progress={"tls":{"enabled":false}}')
    assert not [obj for obj in objects if obj["kind"] == "Secret"]
    env = environment(objects)
    assert env["WRPO_PROGRESS_URL"] == f"http://{HOST}:8081"
    assert not [name for name in env if name.endswith("_FILE")]
    test = one(objects, "Pod", "wrpo-operator-test")
    assert len(test["spec"]["containers"][0]["command"]) == 4
