"""A small HTTP server that speaks a hub's endpoints: info and tree of a model or data set, files with ranges.

Faults on request.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import parse_qs

import pytest
from support.patience import LIMIT_S

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class HubFault:
    """An error answer, or a connection that ends after some bytes of the body."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_body_to: int | None = None


@dataclass
class Hub:
    repo: str
    files: dict[str, bytes]
    kind: Literal["models", "datasets"] = "models"
    lfs: tuple[str, ...] = (".safetensors", ".parquet")
    commit: str = COMMIT
    asked: list[tuple[str, str]] = field(default_factory=list)
    """(path, Range header) of every request, in order."""
    fault: Callable[[str], HubFault | None] = lambda _path: None
    served: dict[str, bytes] = field(default_factory=dict)
    """Contents that are given in place of those that the hub says it has."""
    gated: bool = False
    """Files need a token with access; the list of files needs none."""
    tokens: dict[str, bool] = field(default_factory=dict)
    """Valid token -> whether it has access to a gated model."""
    has_ranges: bool = True
    """Whether a request for a part of a file gets that part, or the whole file."""
    has_sizes: bool = True
    """Whether the list of files has their sizes; some mirrors leave them out."""
    sent: Counter[str] = field(default_factory=Counter)
    """Name of a file -> bytes of it that were sent."""
    port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def gets(self, name: str) -> list[str]:
        """Return the Range headers of the requests for a file."""
        return [asked for path, asked in self.asked if path.endswith(f"/{name}") and "/resolve/" in path]

    def tree(self, under: str = "") -> list[dict[str, Any]]:
        """Return all files below a folder, and the folders themselves."""
        prefix = f"{under}/" if under else ""
        folders = {str(parent) for name in self.files for parent in PurePosixPath(name).parents} - {"."}
        entries: list[dict[str, Any]] = [
            {"type": "directory", "path": folder, "oid": self.commit} for folder in sorted(folders)
        ]
        for each in self.info()["siblings"]:
            entry = {"type": "file", "path": each["rfilename"], "size": each["size"], "oid": each["blobId"]}
            if "lfs" in each:
                entry["lfs"] = {"oid": each["lfs"]["sha256"], "size": each["size"], "pointerSize": 134}
            entries.append(entry)
        return [entry for entry in entries if entry["path"].startswith(prefix)]

    def info(self) -> dict[str, Any]:
        siblings = []
        for name, content in self.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content)}
            entry["blobId"] = hashlib.sha1(  # noqa: S324 (git's)
                b"blob %d\0" % len(content) + content
            ).hexdigest()
            if name.endswith(self.lfs):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
            if not self.has_sizes:
                del entry["size"]
            siblings.append(entry)
        return {"id": self.repo, "modelId": self.repo, "sha": self.commit, "siblings": siblings, "private": False}

    @property
    def api(self) -> str:
        return f"/api/{self.kind}/{self.repo}"

    @property
    def contents(self) -> str:
        """Address below which the files lie."""
        return f"{'/datasets' if self.kind == 'datasets' else ''}/{self.repo}/resolve/{self.commit}/"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        hub, path = self.hub, self.path.split("?")[0].replace("/resolve/main/", f"/resolve/{self.hub.commit}/")
        hub.asked.append((path, self.headers.get("Range", "")))
        fault = hub.fault(path) or HubFault()
        if fault.status is not None:
            self._send(fault.status, b"", fault.headers)
        elif (refusal := self._refusal(path)) is not None:
            self._send(refusal.status or 403, b"", refusal.headers)
        elif re.fullmatch(rf"{hub.api}(/revision/(main|{hub.commit}))?", path):
            self._send_json(hub.info())
        elif path == f"{hub.api}/tree/{hub.commit}" or path.startswith(f"{hub.api}/tree/{hub.commit}/"):
            self._send_json(hub.tree(path.removeprefix(f"{hub.api}/tree/{hub.commit}").strip("/")))
        elif path.startswith("/api/") or f"/{hub.repo}/" not in path:
            code = "RevisionNotFound" if f"/{hub.repo}/" in path else "RepoNotFound"
            self._send(404, b'{"error": "not found"}', {"X-Error-Code": code})
        else:
            name = path.removeprefix(hub.contents)
            self._send_file(name, hub.served.get(name, hub.files.get(name)), fault.cut_body_to)

    def _refusal(self, path: str) -> HubFault | None:
        """Return the answer to a request that lacks the right token."""
        hub, token = self.hub, self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in hub.tokens:
            return HubFault(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        if hub.gated and "/resolve/" in path and not hub.tokens.get(token, False):
            return HubFault(403 if token else 401, {"X-Error-Code": "GatedRepo"})
        return None

    def do_POST(self) -> None:
        """Answer which of some paths exist: what `datasets` asks of a repository."""
        hub, body = self.hub, self.rfile.read(int(self.headers["Content-Length"])).decode()
        hub.asked.append((self.path, ""))
        if self.path != f"{hub.api}/paths-info/{hub.commit}":
            self._send(404, b'{"error": "not found"}', {"X-Error-Code": "RepoNotFound"})
            return
        wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        self._send_json([entry for entry in hub.tree() if entry["path"] in wanted])

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    do_HEAD = do_GET  # noqa: N815

    def _send_file(self, name: str, content: bytes | None, cut: int | None) -> None:
        if content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        digest = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": self.hub.commit, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.hub.has_ranges else None
        if asked is None:
            status, body = 200, content
        else:
            begin, end = int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
            if begin > len(content):
                self._send(416, b"", headers)
                return
            status, body = 206, content[begin:end]
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
        if self.command != "HEAD":
            self.hub.sent[name] += len(body if cut is None else body[:cut])
        self._send(status, body, headers, cut)

    def _send(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response_only(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])
            self.wfile.flush()
        if cut is not None:
            self.close_connection = True

    def log_message(self, *_arguments: Any) -> None:
        pass


@contextmanager
def hub_server(hub: Hub) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(LIMIT_S)


def use_hub(patch: pytest.MonkeyPatch, hub: Hub) -> None:
    """Make the hub's client in this process, which has read its environment already, talk to a server."""
    from huggingface_hub import constants

    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "ENDPOINT", hub.endpoint)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    patch.delenv("HF_TOKEN", raising=False)
