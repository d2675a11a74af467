"""A merged model's files: what each tensor becomes, and the files that the first parent gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from wrpo_engine.contract.merging import MergeFields
from wrpo_engine.loading.files import CONFIG_FILE, INDEX_FILE
from wrpo_engine.merging.methods import prepare
from wrpo_engine.merging.parents import DTYPES, Parent, copied, is_floating, operands, side_files
from wrpo_engine.merging.recipe import recipe_of
from wrpo_engine.merging.writing import Declared, Shards, shards_of, write_tensors
from wrpo_engine.seeds import seed_of

Poll = Callable[[int], None]
"""Called with the number of bytes that were written since the last call; may raise."""


@dataclass(frozen=True, kw_only=True)
class Merge:
    """A merge of parents that fit each other."""

    fields: MergeFields
    parents: Sequence[Parent]
    """The base first, if the method has one."""
    weights_of: Callable[[str], Sequence[float]]
    """Tensor -> weights of the models."""
    skipped: int = 0
    """Parents, the first ones, that give only configuration and tokenizer."""
    found: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """SCE: the weights of the tensors that were merged so far."""

    @cached_property
    def tensors(self) -> dict[str, Declared]:
        """The merged model's tensors by name."""
        chosen = None if self.fields.dtype == "auto" else getattr(torch, self.fields.dtype)
        first = self.parents[0].facts
        return {
            name: Declared(fact.shape, chosen if chosen is not None and is_floating(fact) else DTYPES[fact.dtype])
            for name, fact in first.items()
        }

    @cached_property
    def shards(self) -> Shards:
        """The files of weights."""
        return shards_of(self.tensors)

    def rows(self, name: str) -> Iterator[Tensor]:
        """Yield a merged tensor, some rows at a time."""
        if not is_floating(self.parents[0].facts[name]):
            yield copied(self.parents, name)
            return
        given = operands(self.parents[self.skipped :], name)
        prepared = prepare(given, recipe_of(self.fields, self.weights_of(name), seed_of(self.fields.seed, name)))
        if prepared.weights is not None:
            self.found[name] = prepared.weights
        yield from prepared.merged(given)

    def write_shard(self, path: Path, file: str, poll: Poll) -> None:
        """Write one file of weights."""

        def content(name: str) -> Iterator[Tensor]:
            for rows in self.rows(name):
                yield rows
                poll(rows.numel() * self.tensors[name].dtype.itemsize)

        write_tensors(path, {name: self.tensors[name] for name in self.shards.tensors[file]}, content)

    def small_files(self) -> Mapping[str, Callable[[Path], None]]:
        """Return the other files by name, with what writes each: those of the first parent, and the index."""
        root = self.parents[0].model.path
        files: dict[str, Callable[[Path], None]] = {
            path.relative_to(root).as_posix(): _copier(path) for path in side_files(self.parents[0])
        }
        if self.fields.dtype != "auto":
            config = {**json.loads((root / CONFIG_FILE).read_text(encoding="utf-8")), "dtype": self.fields.dtype}
            config.pop("torch_dtype", None)
            files[CONFIG_FILE] = _writer(json.dumps(config, indent=2) + "\n")
        if self.shards.index is not None:
            files[INDEX_FILE] = _writer(self.shards.index)
        return files

    def write(self, directory: Path, poll: Poll) -> None:
        """Write the whole model into a directory."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, write in self.small_files().items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            write(directory / name)
        for file in self.shards.tensors:
            self.write_shard(directory / file, file, poll)


def _copier(source: Path) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        shutil.copyfile(source, path)

    return write


def _writer(content: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(content, encoding="utf-8")

    return write
