"""A model on a hub at one commit: its files, and parts of them read by ranges, before anything is downloaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wrpo_engine.hub.client import HubPatience, raise_for_status
from wrpo_engine.loading.files import is_model_file

TIMEOUT_S = 60.0
_CHUNK_BYTES = 1 << 20
_PARTIAL = 206
_PAST_THE_END = 416


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a commit. Large ones have a sha256, all have git's id of their content."""

    name: str
    size: int | None
    sha256: str | None
    blob_id: str | None

    def is_content_of(self, path: Path) -> bool:
        """Return whether the local file is this one; one without a checksum on the hub must have the size."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return False
        if self.sha256 is not None:
            return _digest(path, hashlib.sha256()) == self.sha256
        if self.blob_id is not None:
            return _digest(path, hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)) == self.blob_id
        return True


@dataclass(frozen=True)
class HubModel:
    """A pinned model; see `RemoteFiles`."""

    name: str
    revision: str
    """The commit."""
    files: tuple[HubFile, ...]
    patience: HubPatience

    def sizes(self) -> Mapping[str, int]:
        """Return name -> size of every file that loaders read, and of the others as far as the hub lists them."""
        return {file.name: self._size(file) for file in self.files}

    def _size(self, file: HubFile) -> int:
        """Return a file's size. Some mirrors do not list sizes; of files that are read it is then requested."""
        if file.size is not None or not is_model_file(file.name):
            return file.size or 0
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(self.name, file.name, revision=self.revision)
        found = self.patience.call(f"asking for {file.name} of {self.name}", lambda: get_hf_file_metadata(url))
        return found.size or 0

    def read(self, name: str, begin: int, end: int) -> bytes:
        """Return a range of a file. The hub's own errors are raised."""
        if begin >= end:
            return b""
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self.name, name, revision=self.revision)
        return self.patience.call(f"reading {name} of {self.name}", lambda: _range(url, begin, end))


def open_model(name: str, revision: str | None, patience: HubPatience) -> HubModel:
    """Return a hub's model at the commit that a revision is now. The hub's own errors are raised."""
    from huggingface_hub import HfApi

    info = patience.call(f"asking for {name}", lambda: HfApi().model_info(name, revision=revision, files_metadata=True))
    files = tuple(
        HubFile(each.rfilename, each.size, each.lfs.sha256 if each.lfs else None, None if each.lfs else each.blob_id)
        for each in info.siblings or ()
    )
    return HubModel(name, str(info.sha), files, patience)


def _range(url: str, begin: int, end: int) -> bytes:
    from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

    headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={begin}-{end - 1}"}
    content = b""
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT_S) as answer:
        if answer.status_code == _PAST_THE_END:
            return b""
        raise_for_status(answer)
        # A server without ranges sends the file from its beginning; no more of it is read than is needed.
        skipped = 0 if answer.status_code == _PARTIAL else begin
        stated = answer.headers.get("Content-Length", "")
        for chunk in answer.iter_raw():
            content += chunk
            if len(content) >= skipped + end - begin:
                break
    wanted = min(skipped + end - begin, int(stated)) if stated.isdigit() else 0
    if len(content) < wanted:
        raise ConnectionError(f"{url} ended at byte {len(content)} of {wanted}")
    return content[skipped : skipped + end - begin]


def _digest(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return str(digest.hexdigest())
