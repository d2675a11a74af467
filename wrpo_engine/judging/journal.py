"""Replies of parts that are not complete yet, so that a stage that is killed asks no question again.

Each attempt appends to a separate file in the directory of the artifact. On a volume a reply is safe as soon as it
is here. On S3 the file is uploaded when the attempt ends in order, so a killed pod repeats the parts in flight.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wrpo_engine.artifacts import ArtifactWriter
from wrpo_engine.judging.replies import KeptReply

PREFIX = "journal/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One reply: `key` is the question's, `digest` that of the request."""

    key: str
    digest: str
    reply: KeptReply
    requests: int


@dataclass(slots=True)
class Known:
    """What earlier attempts have left."""

    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    requests: int = 0
    """Requests that were sent."""


class Journal:
    """The file of this attempt. Safe to use from several threads."""

    def __init__(self, output: ArtifactWriter) -> None:
        self._output = output
        self._name = f"{PREFIX}{uuid.uuid4().hex}.jsonl"
        self._path = output.directory / self._name
        self._descriptor: int | None = None
        self._lock = threading.Lock()

    def note_request(self) -> None:
        """Note that a request is about to be sent."""
        self._append({"sent": 1})

    def add(self, entry: Entry) -> None:
        """Keep a reply."""
        self._append(
            {
                "key": entry.key,
                "digest": entry.digest,
                "requests": entry.requests,
                "reply": entry.reply.to_dict(),
            }
        )

    def _append(self, line: dict[str, Any]) -> None:
        data = json.dumps(line).encode() + b"\n"
        with self._lock:
            if self._descriptor is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.write(self._descriptor, data)

    def close(self) -> None:
        """Close the file and make it durable in the store."""
        with self._lock:
            if self._descriptor is None:
                return
            os.close(self._descriptor)
            self._descriptor = None
            # A later line of another thread starts the file again.
            path = self._path
        self._output.publish(self._name, lambda target: _copy(path, target), replace=True)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def read_journals(output: ArtifactWriter) -> Known:
    """Return what the journals of earlier attempts hold; a line that a kill cut short is left out."""
    local = output.directory / PREFIX
    paths = {path.name: path for path in sorted(local.glob("*.jsonl"))} if local.is_dir() else {}
    for name in output.published(PREFIX):
        if (file := name.removeprefix(PREFIX)) not in paths and file.endswith(".jsonl"):
            paths[file] = output.fetch(name)
    known = Known()
    for name in sorted(paths):
        for line in _lines(paths[name]):
            if "sent" in line:
                known.requests += 1
                continue
            entry = Entry(
                key=line["key"],
                digest=line["digest"],
                reply=KeptReply.from_dict(line["reply"]),
                requests=line["requests"],
            )
            known.entries.setdefault((entry.key, entry.digest), entry)
    return known


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            content = json.loads(line)
            if isinstance(content, dict):
                yield content
