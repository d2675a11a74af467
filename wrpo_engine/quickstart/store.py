"""Store of assets in a directory: each is built once, whole or not at all, and rebuilt only when its recipe changes."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from wrpo_engine.artifacts.manifest import sha256_of

RECORD_NAME = "asset.json"
"""Written last into an asset's directory: its recipe, and size and sha256 of its files."""

Recipe = Mapping[str, Any]


class Assets(Protocol):
    """Where assets are kept."""

    @property
    def root(self) -> Path:
        """The local directory in which they are built and, once provided, read."""
        ...

    @property
    def location(self) -> str:
        """Where they are kept, for messages."""
        ...

    def locked(self, on_wait: Callable[[], None]) -> AbstractContextManager[None]:
        """Let one process build at a time; `on_wait` is called if another one does."""
        ...

    def is_current(self, name: str, recipe: Recipe) -> bool:
        """Return whether the asset exists, by this recipe, with every file at its recorded size."""
        ...

    def provide(self, name: str) -> None:
        """Ensure that a current asset is below `root`."""
        ...

    def make(self, name: str, recipe: Recipe, build: Callable[[Path], None]) -> Path:
        """Let `build` fill a fresh directory, record it, and replace an older one by it."""
        ...

    def write(self, name: str, text: str) -> None:
        """Write a file where it is missing or differs."""
        ...


def is_complete(record: str | bytes, recipe: Recipe, size_of: Callable[[str], int | None]) -> bool:
    """Return whether a record is of this recipe, and every file that it lists is there with its size."""
    try:
        found = json.loads(record)
        same_recipe = bool(found["recipe"] == json.loads(json.dumps(recipe)))
        return same_recipe and all(size_of(str(file["name"])) == int(file["size"]) for file in found["files"])
    except (ValueError, KeyError, TypeError):
        return False


class AssetStore:
    """The output directory. One process builds at a time; a killed build leaves nothing that looks finished."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def root(self) -> Path:
        """The output directory."""
        return self._root

    @property
    def location(self) -> str:
        """The output directory, for messages."""
        return str(self.root)

    @contextmanager
    def locked(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold the directory's lock."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".quickstart.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def is_current(self, name: str, recipe: Recipe) -> bool:
        """Return whether the asset exists, by this recipe, with every file at its recorded size."""
        directory = self.root / name
        try:
            record = (directory / RECORD_NAME).read_text(encoding="utf-8")
            return is_complete(record, recipe, lambda file: (directory / file).stat().st_size)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def provide(self, name: str) -> None:
        """Do nothing: the asset is in this directory already."""

    def make(self, name: str, recipe: Recipe, build: Callable[[Path], None]) -> Path:
        """Build the asset in a temporary directory, record it, and replace an older one; return its directory."""
        final = self.root / name
        work = final.with_name(f".making-{final.name}")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        build(work)
        files = [
            {"name": str(path.relative_to(work)), "size": path.stat().st_size, "sha256": sha256_of(path)}
            for path in sorted(work.rglob("*"))
            if path.is_file()
        ]
        record = json.dumps({"recipe": recipe, "files": files}, indent=1, ensure_ascii=False)
        (work / RECORD_NAME).write_text(record + "\n", encoding="utf-8")
        if final.exists():
            shutil.rmtree(final)
        work.rename(final)
        return final

    def write(self, name: str, text: str) -> None:
        """Write a file atomically where it is missing or differs."""
        path = self.root / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".making-{path.name}")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)

    def read_record(self, name: str) -> dict[str, Any]:
        """Return what `make` recorded."""
        record: dict[str, Any] = json.loads((self.root / name / RECORD_NAME).read_text(encoding="utf-8"))
        return record
