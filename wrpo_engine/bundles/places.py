"""Places that hold a bundle's files: an installed package, a data set of the hub, a directory or a file."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from wrpo_engine.artifacts.manifest import sha256_of
from wrpo_engine.bundles.known import KNOWN
from wrpo_engine.contract.types import is_hub_id
from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.formats.shown import names
from wrpo_engine.hub.client import HubPatience
from wrpo_engine.hub.data import hub_files
from wrpo_engine.stage import StageContext

log = logging.getLogger("wrpo_engine")

FIELD = "evaluation.benchmarks[].bundle"
_PACKAGE = "package:"
_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt", ".yaml", ".yml", "judge_utils.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file that a bundle was made from."""

    kind: str
    name: str
    sha256: str
    known: str | None
    """What the file is if its digest is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The data files of one place by their relative names."""

    kind: str
    """package, hub, directory or file."""
    name: str
    files: Mapping[str, Path]

    def match(self, candidate: str) -> tuple[str, Path] | None:
        """Return the file whose name ends with the candidate, the one nearest to the top; DataError if several are."""
        found = [name for name in self.files if name == candidate or name.endswith(f"/{candidate}")]
        if not found:
            return None
        least = min(name.count("/") for name in found)
        nearest = sorted(name for name in found if name.count("/") == least)
        if len(nearest) > 1:
            raise DataError(
                f"{self.name} has several files {candidate}: {names(nearest)}",
                code="BundleAmbiguous",
                field=FIELD,
                hint="Name the directory of one of them as the bundle.",
            )
        return nearest[0], self.files[nearest[0]]


@dataclass(slots=True)
class Bundle:
    """The places of one bundle, the first one first, and what has been read of them."""

    places: Sequence[Place]
    used: dict[Path, Source] = field(default_factory=dict)

    def find(self, *candidates: str) -> Path | None:
        """Return the first candidate that a place has, and note it as read; None if no place has one."""
        for place in self.places:
            for candidate in candidates:
                if (match := place.match(candidate)) is not None:
                    self._note(place, *match)
                    return match[1]
        return None

    def need(self, what: str, *candidates: str) -> Path:
        """Return the file as `find` does; DataError says what is missing and where it was searched."""
        found = self.find(*candidates)
        if found is None:
            raise DataError(
                f"the bundle has no {what}: no file {' or '.join(candidates)} in "
                f"{' or '.join(place.name for place in self.places)}",
                code="BundleIncomplete",
                field=FIELD,
                hint='Add the file, or name another bundle; the guide "Files of benchmarks" names the files.',
            )
        return found

    def only_table(self) -> Path | None:
        """Return the file of the first place if it has just one."""
        place = self.places[0]
        if len(place.files) != 1:
            return None
        ((name, path),) = place.files.items()
        self._note(place, name, path)
        return path

    def listed(self, under: str) -> list[str]:
        """Return the stems of the files in the directories that end with `under`."""
        return sorted(
            {
                PurePosixPath(name).stem
                for place in self.places
                for name in place.files
                if f"/{name}".rpartition("/")[0].endswith(f"/{under}")
            }
        )

    def sources(self) -> list[Source]:
        """Return the files that were read, by name."""
        return sorted(self.used.values(), key=lambda source: (source.name, source.kind))

    def _note(self, place: Place, name: str, path: Path) -> None:
        if path in self.used:
            return
        digest = sha256_of(path)
        known = next((versions for end, versions in KNOWN.items() if f"/{name}".endswith(f"/{end}")), {})
        if known and digest not in known:
            log.warning("%s of %s is none of the known versions; its sha256 is %s", name, place.name, digest)
        self.used[path] = Source(kind=place.kind, name=name, sha256=digest, known=known.get(digest))


def open_bundle(ctx: StageContext, reference: str, *, wanted: Sequence[str], packages: Sequence[str]) -> Bundle:
    """Return the files of a reference, and of those of the packages that are installed, which it may leave out.

    Of a data set of the hub only the files are downloaded whose paths end with one of `wanted`, patterns of `fnmatch`.
    """
    first = _place(ctx, reference, [f"*{end}" for end in wanted or _SUFFIXES])
    others = [_package(name) for name in packages if f"{_PACKAGE}{name}" != reference and _is_installed(name)]
    return Bundle([first, *others])


def _place(ctx: StageContext, reference: str, patterns: Sequence[str]) -> Place:
    if reference.startswith(_PACKAGE):
        name = reference.removeprefix(_PACKAGE)
        if not _is_installed(name):
            raise ConfigError(
                FIELD,
                reference,
                f"the package {name} is not installed in this image",
                "Install it in the image, or put its files on the storage and name them storage://PATH.",
                code="PackageNotFound",
            )
        return _package(name)
    if is_hub_id(reference):
        patience = HubPatience.of(ctx.environ, ctx.stop.raise_if_requested)
        root = hub_files(reference, patterns, patience=patience, field=FIELD)
        return Place(kind="hub", name=reference, files=_below(root))
    path = Path(ctx.resolve_path(reference, only=lambda name: name.endswith(_SUFFIXES)))
    if not path.exists():
        raise ConfigError(
            FIELD, reference, f"there is no file or directory {path}", "Check the path and its volume.", code="NotFound"
        )
    if path.is_file():
        return Place(kind="file", name=reference, files={path.name: path})
    return Place(kind="directory", name=reference, files=_below(path))


def _below(root: Path) -> dict[str, Path]:
    return {
        path.relative_to(root).as_posix(): path
        for path in sorted(root.rglob("*"))
        if path.name.endswith(_SUFFIXES) and path.is_file() and not _is_hidden(path.relative_to(root))
    }


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return False
    return True


def _package(name: str) -> Place:
    """Return the data files of an installed package. It is not imported."""
    distribution = importlib.metadata.distribution(name)
    files = {str(file): Path(str(file.locate())) for file in distribution.files or () if str(file).endswith(_SUFFIXES)}
    return Place(
        kind="package",
        name=f"{_PACKAGE}{name} {distribution.version}",
        files={file: path for file, path in files.items() if path.is_file()},
    )
