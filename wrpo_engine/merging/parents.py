"""The models that are merged: their tensors by name, and the checks that they fit each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wrpo_engine.errors import DataError
from wrpo_engine.hub.model_digest import model_digest
from wrpo_engine.hub.models import ResolvedModel, read_tokenizer, tensor_facts, transformers_config, vocabulary_size
from wrpo_engine.loading.files import CONFIG_FILE, TensorFact, data_starts, is_quantised
from wrpo_engine.merging.operands import CHUNK_ELEMENTS, Operands

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' names of the number formats that can be merged or copied."""
_SAME = (
    "model_type",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "num_experts_per_tok",
)
"""Entries of a configuration that say what weights of one shape mean."""


@dataclass(frozen=True)
class Parent:
    """One model."""

    model: ResolvedModel
    facts: Mapping[str, TensorFact]
    """Without weights that are tied to others."""
    tied: tuple[str, ...]
    """Names of those weights."""

    def read(self, name: str, rows: slice) -> Tensor:
        """Return rows of a tensor; a number is one row. DataError if a value is not finite."""
        fact = self.facts[name]
        found = self._stored(name, rows)
        if not found.is_floating_point():
            return found
        values = found.to(_arithmetic(fact))
        # The sum costs a tenth of isfinite. It is not finite if an element is not, or if it overflows.
        if not math.isfinite(float(values.sum())) and not bool(torch.isfinite(values).all()):
            kind = "NaN" if bool(torch.isnan(values).any()) else "infinite numbers"
            raise DataError(
                f"tensor {name} of {self.model.identity} holds {kind} ({fact.file})",
                code="WeightsNotFinite",
                field=self.model.field,
                hint="Leave the model out, or use a checkpoint from before it diverged.",
            )
        return values

    def _stored(self, name: str, rows: slice) -> Tensor:
        """Read rows as the file has them. Mapped pages would stay in memory, and a mapping for each read is slow."""
        fact, dtype = self.facts[name], DTYPES[self.facts[name].dtype]
        row_bytes = math.prod(fact.shape[1:]) * dtype.itemsize
        size, start = (rows.stop - rows.start) * row_bytes, self._starts[name] + rows.start * row_bytes
        content = np.fromfile(self.model.path / fact.file, dtype=np.uint8, count=size, offset=start)
        if content.size < size:
            raise self.model.directory.invalid(
                f"{fact.file} was cut while it was read", "Copy or download the file again.", code="ModelDamaged"
            )
        return torch.from_numpy(content).view(dtype).reshape(-1, *fact.shape[1:])

    @cached_property
    def _starts(self) -> Mapping[str, int]:
        files = {fact.file for fact in self.facts.values()}
        return {name: start for file in files for name, start in data_starts(self.model.path / file).items()}

    def identity(self) -> dict[str, Any]:
        """Return name and digest for the card: the commit or the artifact's digest, else one of the files."""
        revision = self.model.revision
        return {"name": self.model.identity, "digest": revision or model_digest(self.model.path)}


def _arithmetic(fact: TensorFact) -> torch.dtype:
    return torch.float64 if fact.dtype == "F64" else torch.float32


def open_parent(model: ResolvedModel) -> Parent:
    """Return a model's tensors from the headers of its files; ConfigError if they cannot be merged."""
    if is_quantised(model.directory.read_object(CONFIG_FILE)):
        raise model.directory.invalid(
            "its weights are quantised, so they cannot be merged", "Use the model before its quantisation."
        )
    facts = tensor_facts(model)
    tied = {name for name, source in _tied(model).items() if source in facts}
    kept = {name: fact for name, fact in facts.items() if name not in tied}
    for name, fact in sorted(kept.items()):
        if fact.dtype not in DTYPES:
            known = ", ".join(DTYPES)
            raise model.directory.invalid(
                f"tensor {name} has the number format {fact.dtype}, which cannot be merged; possible are {known}",
                "Save the model in one of them.",
            )
    return Parent(model, kept, tuple(sorted(tied)))


def _tied(model: ResolvedModel) -> dict[str, str]:
    """Return weight -> the weight that it is, by the model's class."""
    from transformers import AutoModelForCausalLM

    config = transformers_config(model)
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    return dict(built.all_tied_weights_keys)


def require_alike(parents: Sequence[Parent]) -> None:
    """Raise DataError naming the first difference of architecture, vocabulary or tensors from the first parent."""
    first, *others = parents
    for other in others:
        _require_same_architecture(first, other)
        _require_same_tensors(first, other)
    for other in others:
        _require_same_tokens(first, other)


def _require_same_architecture(first: Parent, other: Parent) -> None:
    one, two = (_settings(parent.model) for parent in (first, other))
    for key in _SAME:
        if one.get(key) != two.get(key):
            raise _unlike(first, other, f"{key} of {CONFIG_FILE} is {two.get(key)!r}", repr(one.get(key)))
    sizes = [vocabulary_size(parent.model) for parent in (first, other)]
    if sizes[0] != sizes[1]:
        raise _unlike(first, other, f"vocab_size of {CONFIG_FILE} is {sizes[1]}", str(sizes[0]))


def _settings(model: ResolvedModel) -> Mapping[str, Any]:
    config = model.directory.read_object(CONFIG_FILE)
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def _require_same_tensors(first: Parent, other: Parent) -> None:
    for name in sorted(first.facts.keys() | other.facts.keys()):
        one, two = first.facts.get(name), other.facts.get(name)
        if one is None or two is None:
            place = "is missing" if two is None else f"has the shape {list(two.shape)}"
            raise _unlike(first, other, f"tensor {name} {place}", "missing" if one is None else str(list(one.shape)))
        if one.shape != two.shape:
            raise _unlike(first, other, f"tensor {name} has the shape {list(two.shape)}", str(list(one.shape)))
        if one.dtype != two.dtype and not (is_floating(one) and is_floating(two)):
            raise _unlike(first, other, f"tensor {name} has the number format {two.dtype}", one.dtype)


def is_floating(fact: TensorFact) -> bool:
    """Return whether a tensor is merged; others are copied and have to be equal."""
    return DTYPES[fact.dtype].is_floating_point


def _require_same_tokens(first: Parent, other: Parent) -> None:
    """Compare what ids mean. Special tokens may have other names, as fine-tunes give reserved ones names."""
    tokens, special = _tokens(first.model)
    others, more = _tokens(other.model)
    for index in sorted(tokens.keys() & others.keys()):
        if tokens[index] != others[index] and not (index in special and index in more):
            raise _unlike(first, other, f"token {index} is {others[index]!r}", repr(tokens[index]))


def _tokens(model: ResolvedModel) -> tuple[dict[int, str], set[int]]:
    tokenizer = read_tokenizer(
        str(model.path), field=model.field, identity=model.identity, trust_remote_code=model.trust_remote_code
    )
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {index: token for token, index in tokenizer.get_vocab().items()}, special | set(tokenizer.all_special_ids)


def _unlike(first: Parent, other: Parent, what: str, expected: str) -> DataError:
    return DataError(
        f"{other.model.identity} cannot be merged with {first.model.identity}: {what}, there {expected}",
        code="ParentsUnlike",
        field=other.model.field,
        hint="Merge models of one architecture and vocabulary, for example fine-tunes of one base model.",
    )


def operands(parents: Sequence[Parent], name: str, *, chunk_elements: int = CHUNK_ELEMENTS) -> Operands:
    """Return a tensor of all parents."""
    return Operands(
        shape=parents[0].facts[name].shape,
        count=len(parents),
        read=lambda parent, rows: parents[parent].read(name, rows),
        chunk_elements=chunk_elements,
    )


def copied(parents: Sequence[Parent], name: str) -> Tensor:
    """Return a tensor that is no weight, for example a table of positions; DataError unless all parents agree."""
    rows = parents[0].facts[name].shape[:1]
    whole = slice(0, rows[0] if rows else 1)
    first = parents[0].read(name, whole)
    for parent in parents[1:]:
        if not torch.equal(first, parent.read(name, whole)):
            raise _unlike(parents[0], parent, f"tensor {name}, which is not floating-point, differs", "other values")
    return first


def side_files(parent: Parent) -> list[Path]:
    """Return the parent's files besides weights: configuration, tokenizer, code."""
    from wrpo_engine.loading.files import INDEX_FILE, WEIGHTS_SUFFIX, is_model_file

    root = parent.model.path
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return [
        root / name
        for name in names
        if is_model_file(name) and name != INDEX_FILE and not name.endswith(WEIGHTS_SUFFIX)
    ]
