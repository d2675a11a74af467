"""Selection of the files of a directory that hold a split.

The same rules hold for a volume, a bucket's prefix and a snapshot of a hub's repository, and they are those by which
`datasets` reads a directory: what the dataset card says, else files `data/SPLIT-00000-of-00001.*`, else names of
directories, else names of files. So data that are held out elsewhere are held out here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wrpo_engine.errors import DataError, WrpoError
from wrpo_engine.formats.card import Card, matching, read_card
from wrpo_engine.formats.shown import names

TRAIN = "train"
_KEYWORDS = {
    TRAIN: ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_BORDER = r"[-._ 0-9]"
_BY_NAME = {
    split: re.compile(rf"(?:^|{_BORDER})(?:{'|'.join(words)})(?:{_BORDER}|$)", re.IGNORECASE)
    for split, words in _KEYWORDS.items()
}
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_TRAIN_WORD = re.compile(r"training|train|trn")
_HELD_OUT_WORDS = [
    re.compile(word) for word in ("evaluation", "eval", "validation", "valid", "val", "dev", "testing", "test", "tst")
]
_HELD_OUT = re.compile(
    r"(?:^|[\W_\d])(?:tests?|tst|val|validation|eval|evaluation|dev|hold[\W_]?out|held[\W_]?out)(?:[\W_\d]|$)"
)
_SHARDED = re.compile(r"^(?P<split>\w+(?:\.\w+)*)-\d{5}-of-\d{5}.*\.")
_SHARDS = "data"
_DOCUMENT = re.compile(
    r"^((.*[\W_])?(readme|licen[cs]es?|copying)|notice|changelog|citation|authors|contributors|contributing|requirements"
    r"|checksums?|sha256sums?|terms|eula|disclaimer|credits|acknowledge?ments|version|todo|robots|(data)?[\W_]?card)"
    r"([\W_].*)?$",
    re.IGNORECASE,
)
"""Texts that accompany data in repositories, under these names with .txt or without a suffix."""
_METADATA = re.compile(
    r"^(metadata|dataset_infos?|dataset_dict|state|config|generation_config|manifest|croissant)\.\w+$", re.IGNORECASE
)
_KINDS = {".jsonl": "JSON", ".ndjson": "JSON", ".json": "JSON"}
_DATA = re.compile(
    r"\.(gz|zst|zip|bz2|xz|lz4|7z|tar|tgz|rar|arrow|feather|orc|avro|xlsx?|ods|pkl|pickle|db|sqlite|npy|npz|pt|bin|h5"
    r"|parquet|jsonl|ndjson|json|csv|tsv|txt)$",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Selected:
    """The files of a split, sorted, and sentences on what else is in the directory."""

    files: list[Path]
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The request of a reader, and the names of its settings in errors."""

    split: str
    suffixes: Sequence[str]
    """File types that it reads."""
    refuse: Callable[[str, str, str], WrpoError]
    """(setting, rule, hint) -> the error. Settings: `data`, `split`, `config`."""
    config: str | None = None
    only_split: bool = False
    """Whether the only split is accepted under any name."""


def file_split(path: Path, wanted: Wanted) -> None:
    """Refuse a split or a configuration that a single file cannot have: it is what the user named, and one split."""
    if type_of(path) not in wanted.suffixes:
        raise wanted.refuse("data", *_other_type(path, wanted))
    own = {split for split, pattern in _BY_NAME.items() if pattern.search(path.name)}
    if sharded := _SHARDED.match(path.name):
        own.add(sharded["split"])
    if wanted.split not in {TRAIN, *own} and not wanted.only_split:
        raise wanted.refuse(
            "split", f"{path} is a single file, which has no splits", "Leave it out, or name that file."
        )
    if wanted.config is not None:
        raise wanted.refuse("config", f"{path} is a single file, which has no configurations", "Leave it out.")


def _other_type(path: Path, wanted: Wanted) -> tuple[str, str]:
    rule = f"files of type {path.suffix or 'none'} are not read"
    return rule, f"Use one of {', '.join(wanted.suffixes)}; decompress what is compressed."


def select(directory: Path, wanted: Wanted) -> Selected:
    """Return the files of the requested split; the error says which splits there are.

    Hidden files and files that are not data by their names are left out. Data of several types are refused: the engine
    does not guess which are meant.
    """
    found = _files_below(directory)
    data = [path for path in found if _is_data(path)]
    if not any(type_of(path) in wanted.suffixes for path in data):
        other = f"; it has {names(path.relative_to(directory) for path in data)}" if data else ""
        rule = f"{directory} holds no file of type {', '.join(wanted.suffixes)}{other}"
        raise wanted.refuse("data", rule, "Name a directory with such files; decompress what is compressed.")
    splits = {split: files for split, files in _splits(directory, data, wanted).items() if files}
    split = _choose(directory, splits, wanted)
    _refuse_kinds(directory, splits[split], wanted)
    others = sorted(set(splits) - {split})
    left_out = sorted(set(found) - {path for files in splits.values() for path in files})
    notes = [f"{directory}: reading the split {split}; other splits: {', '.join(others)}"] if others else []
    if left_out:
        notes.append(f"{directory}: not read: {names(path.relative_to(directory) for path in left_out)}")
    return Selected(files=splits[split], notes=notes)


def type_of(path: Path) -> str:
    """Return a file's suffix in small letters."""
    return path.suffix.lower()


def _is_data(path: Path) -> bool:
    is_document = type_of(path) in {"", ".txt"} and _DOCUMENT.match(path.name)
    return bool(_DATA.search(path.name)) and not is_document and not _METADATA.match(path.name)


def _files_below(directory: Path) -> list[Path]:
    """Return all files, sorted, as the order of a listing must not decide anything; no hidden ones."""
    paths = [path for path in directory.rglob("*") if not _is_hidden(path.relative_to(directory))]
    if broken := [path for path in paths if path.is_symlink() and not path.exists()]:
        raise DataError(
            f"{broken[0]} is a link to {broken[0].readlink()}, which does not exist",
            code="DatasetDamaged",
            hint="Download the data set again, or remove the link.",
        )
    return sorted(path for path in paths if path.is_file())


def _is_hidden(below: Path) -> bool:
    return any(part.startswith((".", "_")) for part in below.parts)


def _splits(directory: Path, data: list[Path], wanted: Wanted) -> dict[str, list[Path]]:
    card = read_card(directory)
    if card is not None and card.configs:
        return _by_card(directory, card, data, wanted)
    if wanted.config is not None:
        rule = f"{directory} has no dataset card (README.md) that names configurations"
        raise wanted.refuse("config", rule, "Leave it out, or name the directory with the files.")
    return _splits_by_name(directory, data)


def _by_card(directory: Path, card: Card, data: list[Path], wanted: Wanted) -> dict[str, list[Path]]:
    name = wanted.config or card.default
    if name is None or name not in card.configs:
        listed = names(sorted(card.configs))
        if name is not None:
            raise wanted.refuse(
                "config", f"the dataset card of {directory} has the configurations {listed}", "Name one."
            )
        rule = f"the dataset card of {directory} has several configurations ({listed}), and none is named"
        raise wanted.refuse("config", rule, "Name one of them, or a file or directory below.")
    config = card.configs[name]
    if isinstance(config, str):
        below = [path for path in data if path.is_relative_to(directory / config)]
        return _splits_by_name(directory / config, below)
    splits = {split: matching(directory, patterns) for split, patterns in config.items()}
    return {split: [path for path in files if path in set(data)] for split, files in splits.items()}


def _splits_by_name(directory: Path, data: Sequence[Path]) -> dict[str, list[Path]]:
    """Return the files of each split by their names; files of none are left out, and without any name all are `train`.

    Raises DataError for a name that says two splits.
    """
    if shards := _sharded(directory, data):
        return _grouped(shards)
    for is_directory in (True, False):
        parts_of = {path: path.relative_to(directory).parent.parts if is_directory else (path.name,) for path in data}
        by_name = {path: split for path, parts in parts_of.items() if (split := _split_in(path, parts)) is not None}
        if by_name:
            return _grouped(by_name)
    if held_out := _held_out(data):
        raise DataError(
            f"{directory} holds {names(path.relative_to(directory) for path in held_out)}, held out by the name, but "
            "no file that names a split as `train.jsonl` and `test.jsonl` do",
            code="SplitAmbiguous",
            hint="Rename the files (train, validation, test between separators), or name the file that is meant.",
        )
    return {TRAIN: list(data)}


def _held_out(data: Sequence[Path]) -> list[Path]:
    """Return the files with held-out data under names that denote no split by the rules of `datasets`.

    Their names have such a word by itself (`testSet`, `hold-out`), or are that of another file with such a word where
    the other has `train` (`mytest` and `mytrain`).
    """
    twins = {_TRAIN_WORD.sub("*", path.stem.lower()) for path in data if _TRAIN_WORD.search(path.stem.lower())}
    return [
        path
        for path in data
        if _HELD_OUT.search(_CAPITAL.sub("_", path.stem).lower())
        or any(word.sub("*", path.stem.lower()) in twins for word in _HELD_OUT_WORDS)
    ]


def _sharded(directory: Path, data: Sequence[Path]) -> dict[Path, str]:
    """Return the splits of data/SPLIT-00000-of-00001.* below the directory.

    In a directory that is itself called `data` such names count only if they name several splits: they may just as well
    be the parts of one.
    """
    shards = {path: found["split"] for path in data if (found := _SHARDED.match(path.name))}
    below = {path: split for path, split in shards.items() if path.parent == directory / _SHARDS}
    if below or directory.name != _SHARDS:
        return below
    own = {path: split for path, split in shards.items() if path.parent == directory}
    return own if len(own) == len(data) and len(set(own.values())) > 1 else {}


def _grouped(splits: Mapping[Path, str]) -> dict[str, list[Path]]:
    grouped: dict[str, list[Path]] = {}
    for path, split in splits.items():
        grouped.setdefault(split, []).append(path)
    return grouped


def _split_in(path: Path, parts: Sequence[str]) -> str | None:
    found = {split for split, pattern in _BY_NAME.items() if any(pattern.search(part) for part in parts)}
    if len(found) > 1:
        raise DataError(
            f"{path} is of several splits by its name: {', '.join(sorted(found))}",
            code="SplitAmbiguous",
            hint="Rename it, or name the file that is meant.",
        )
    return next(iter(found), None)


def _choose(directory: Path, splits: Mapping[str, list[Path]], wanted: Wanted) -> str:
    if wanted.split in splits:
        return wanted.split
    if wanted.only_split and len(splits) == 1:
        return next(iter(splits))
    listed = ", ".join(sorted(splits)) or "none"
    raise wanted.refuse("split", f"{directory} has the splits {listed}", "Name one of them.")


def _refuse_kinds(directory: Path, files: Sequence[Path], wanted: Wanted) -> None:
    first_of: dict[str, Path] = {}
    for path in files:
        first_of.setdefault(_KINDS.get(type_of(path), type_of(path)), path)
    if len(first_of) > 1:
        listed = names(path.relative_to(directory) for path in first_of.values())
        rule = f"{directory} holds data files of several types: {listed}"
        raise wanted.refuse("data", rule, "Keep files of one type there, or name the file that is meant.")
    if type_of(files[0]) not in wanted.suffixes:
        raise wanted.refuse("data", *_other_type(files[0], wanted))
