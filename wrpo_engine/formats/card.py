"""Dataset cards (README.md): a directory's `configs` in the front matter, as hubs read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from wrpo_engine.errors import DataError
from wrpo_engine.formats.shown import shown

_CARD = "README.md"
_FENCE = "---"


@dataclass(frozen=True, kw_only=True)
class Card:
    """Configurations by name: split -> patterns of files, or the directory below which file names give the split."""

    configs: Mapping[str, Mapping[str, Sequence[str]] | str]
    default: str | None
    """The default configuration."""


def matching(directory: Path, patterns: Sequence[str]) -> list[Path]:
    """Return the files below a directory that match one of a card's patterns, sorted."""
    found: set[Path] = set()
    for pattern in patterns:
        try:
            # `**` at the end matches directories only.
            found.update(directory.glob(f"{pattern}/*" if pattern.endswith("**") else pattern))
        except ValueError as error:
            raise _wrong(directory / _CARD, f"the pattern {shown(pattern)}: {error}") from error
    return sorted(path for path in found if path.is_file())


def read_card(directory: Path) -> Card | None:
    """Return the card's configurations; None without a card or without `configs`. DataError if the card is invalid."""
    path = directory / _CARD
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").removeprefix("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != _FENCE:
        return None
    ends = [number for number, line in enumerate(lines[1:], start=1) if line.rstrip() == _FENCE]
    if not ends:
        return None
    try:
        front = yaml.safe_load("\n".join(lines[1 : ends[0]]))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise _wrong(path, f"its front matter is not valid YAML: {(str(error).splitlines() or ['?'])[0]}") from error
    entries = front.get("configs") if isinstance(front, dict) else None
    if not entries:
        return None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _wrong(path, f"its `configs` is {shown(entries)}, where a list of objects is needed")
    _refuse_repeated("configuration", [str(entry.get("config_name", "default")) for entry in entries], path)
    configs = {str(entry.get("config_name", "default")): _config(entry, path) for entry in entries}
    return Card(configs=configs, default=_default(entries, configs))


def _refuse_repeated(what: str, found: Sequence[str], path: Path) -> None:
    """Refuse a name that occurs twice, because one of its entries would be ignored silently."""
    if twice := next((name for name in found if found.count(name) > 1), None):
        raise _wrong(path, f"it has the {what} {shown(twice)} twice")


def _default(entries: Sequence[Mapping[str, Any]], configs: Mapping[str, Any]) -> str | None:
    marked = [str(entry.get("config_name", "default")) for entry in entries if entry.get("default") is True]
    if marked:
        return marked[0]
    if len(configs) == 1:
        return next(iter(configs))
    return "default" if "default" in configs else None


def _config(entry: Mapping[str, Any], path: Path) -> Mapping[str, Sequence[str]] | str:
    files = entry.get("data_files")
    below = str(entry.get("data_dir") or "")
    if files is None:
        return _inside(below, path) if below else "."
    if isinstance(files, str) or (isinstance(files, list) and all(isinstance(each, str) for each in files)):
        return {"train": _patterns(files, below, path)}
    if not isinstance(files, list) or not all(isinstance(each, dict) and "split" in each for each in files):
        raise _wrong(path, f"`data_files` of a configuration is {shown(files)}, where patterns or splits are needed")
    _refuse_repeated("split", [str(each["split"]) for each in files], path)
    return {str(each["split"]): _patterns(each.get("path"), below, path) for each in files}


def _patterns(value: Any, below: str, path: Path) -> list[str]:
    patterns = [value] if isinstance(value, str) else value
    if not isinstance(patterns, list) or not patterns or not all(isinstance(each, str) and each for each in patterns):
        raise _wrong(path, f"`path` of a split is {shown(value)}, where patterns of files are needed")
    return [_inside(f"{below}/{each}" if below else each, path) for each in patterns]


def _inside(pattern: str, path: Path) -> str:
    posix = PurePosixPath(pattern)
    if posix.is_absolute() or ".." in posix.parts or "://" in pattern:
        raise _wrong(path, f"it names {shown(pattern)}, which is not below its directory")
    return posix.as_posix()


def _wrong(path: Path, what: str) -> DataError:
    return DataError(
        f"the dataset card {path} cannot be followed: {what}",
        code="DatasetCardInvalid",
        hint="Correct or remove it, or name the data file itself.",
    )
