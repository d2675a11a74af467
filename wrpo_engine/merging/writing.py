"""Safetensors files that are written tensor by tensor, chunk by chunk."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from wrpo_engine.loading.files import HEADER_LENGTH_BYTES
from wrpo_engine.merging.parents import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Declared:
    """A tensor that is going to be written."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Its size in the file."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Shards:
    """Division of a model into files."""

    tensors: Mapping[str, Sequence[str]]
    """File -> names of its tensors, in the file's order."""
    index: str | None
    """Content of the index; None for one file."""


def shards_of(tensors: Mapping[str, Declared], max_shard_size: int | str | None = None) -> Shards:
    """Divide a model's tensors into files as Transformers' save_pretrained does."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from transformers import PreTrainedModel

    if max_shard_size is None:
        max_shard_size = inspect.signature(PreTrainedModel.save_pretrained).parameters["max_shard_size"].default
    empty = {name: torch.empty(one.shape, dtype=one.dtype, device="meta") for name, one in sorted(tensors.items())}
    split = split_torch_state_dict_into_shards(empty, max_shard_size=max_shard_size)
    # Wide numbers first keep every tensor aligned.
    ordered = {
        file: sorted(names, key=lambda name: (-tensors[name].dtype.itemsize, name))
        for file, names in split.filename_to_tensors.items()
    }
    index = {"metadata": split.metadata, "weight_map": dict(sorted(split.tensor_to_filename.items()))}
    return Shards(ordered, json.dumps(index, indent=2) + "\n" if split.is_sharded else None)


def write_tensors(path: Path, tensors: Mapping[str, Declared], content: Callable[[str], Iterable[Tensor]]) -> None:
    """Write a safetensors file; `content` gives the rows of each tensor in order, which are rounded here."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, tensor in tensors.items():
        end = place + tensor.num_bytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_LENGTH_BYTES)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(HEADER_LENGTH_BYTES, "little"))
        file.write(text)
        for name, tensor in tensors.items():
            written = 0
            for rows in content(name):
                written += file.write(rows.to(tensor.dtype).contiguous().reshape(-1).view(torch.uint8).numpy().data)
            assert written == tensor.num_bytes, name
