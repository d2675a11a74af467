"""Outline of a remote model: a local directory with its small files, and of each weight file the header alone.

After the header a weight file is a hole of the right size, which takes no disk. Everything that reads only headers
works on an outline as on the model itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from wrpo_engine.artifacts.parallel import in_parallel
from wrpo_engine.artifacts.store import RemoteFiles
from wrpo_engine.loading.files import HEADER_LENGTH_BYTES, WEIGHTS_SUFFIX, header_end, is_model_file

_AT_ONCE = 8
_OTHER_WEIGHTS = (".bin", ".gguf")
_TOP = PurePosixPath(".")
_FIRST_BYTES = 1024
_LONGEST_HEADER = 100_000_000
"""The limit of the safetensors library."""


def write_outline(remote: RemoteFiles, directory: Path) -> None:
    """Fill `directory` with the outline of a model. Reads no weights."""
    sizes = {
        name: size for name, size in remote.sizes().items() if is_model_file(name) and ".." not in Path(name).parts
    }

    def write(name: str) -> None:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        is_weights = name.endswith(WEIGHTS_SUFFIX)
        content = _header(remote, name, sizes[name]) if is_weights else remote.read(name, 0, sizes[name])
        with path.open("wb") as file:
            file.write(content)
            file.truncate(sizes[name])

    in_parallel(write, _smallest_first(sizes), threads=_AT_ONCE, name="outline")


def _smallest_first(sizes: dict[str, int]) -> Iterable[str]:
    return sorted(sizes, key=lambda name: sizes[name])


def _header(remote: RemoteFiles, name: str, size: int) -> bytes:
    """Return the header of a weight file and nothing after it; of a damaged one only its first bytes."""
    first = remote.read(name, 0, min(size, HEADER_LENGTH_BYTES))
    end = header_end(first)
    if end is None or end > min(size, _LONGEST_HEADER):
        # What it begins with shows what it is, e.g. a pointer of Git LFS.
        return remote.read(name, 0, min(size, _FIRST_BYTES))
    return first + remote.read(name, len(first), end)
