"""Assets in a directory: each made once, whole or not at all, and made again only when its recipe changes."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wrpo_engine.artifacts.manifest import sha256_of

RECORD_NAME = "asset.json"
"""Written last into an asset's directory: its recipe, and size and sha256 of its files."""

Recipe = Mapping[str, Any]


class AssetStore:
    """The output directory. One process builds at a time; a killed build leaves nothing that looks finished."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def locked(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold the directory's lock; `on_wait` is called if another process holds it."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".quickstart.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def is_current(self, name: str, recipe: Recipe) -> bool:
        """Tell whether the asset is there, by this recipe, with every file at its recorded size."""
        directory = self.root / name
        try:
            record = json.loads((directory / RECORD_NAME).read_text(encoding="utf-8"))
            files = {str(entry["name"]): int(entry["size"]) for entry in record["files"]}
            return bool(record["recipe"] == json.loads(json.dumps(recipe))) and all(
                (directory / file).stat().st_size == size for file, size in files.items()
            )
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return False

    def make(self, name: str, recipe: Recipe, build: Callable[[Path], None]) -> Path:
        """Let `build` fill a fresh directory, record it, and put it in the place of an older one."""
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

    def read_record(self, name: str) -> dict[str, Any]:
        """Return what `make` recorded."""
        record: dict[str, Any] = json.loads((self.root / name / RECORD_NAME).read_text(encoding="utf-8"))
        return record
