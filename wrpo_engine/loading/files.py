"""Files of a model directory: which there are, and readers of JSON files and weight headers. They load no tensor."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from wrpo_engine.errors import ConfigError, first_line

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_FILE = "adapter_config.json"
WEIGHTS_SUFFIX = ".safetensors"
_SINGLE_FILE = "model.safetensors"
_PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.tiktoken")
_OF_OTHER_LOADERS = ("consolidated*", "params.json")
"""The same weights and their configuration in Mistral's and Meta's own format. Next to them, vLLM reads the model by
other code than Transformers' format."""
_TEMPLATES = "additional_chat_templates"
"""The only sub-directory that a loader reads."""
HUB_PATTERNS = _PATTERNS
HUB_IGNORED = (*_OF_OTHER_LOADERS, *(f"*/{pattern}" for pattern in _PATTERNS if pattern != "*.jinja"))
"""The same choice for the filter of `snapshot_download`, whose `*` also matches slashes."""
HEADER_LENGTH_BYTES = 8
_INDEX_TOLERANCE = 0.01
"""Share by which an index may miss the size of the weights: some count buffers that are not stored."""
_NAMES_SHOWN = 5
_POINTER = b"version https://git-lfs.github.com/spec/"
_WRAPPERS = re.compile(r"(?:module\.|_orig_mod\.|_fsdp_wrapped_module\.|base_model\.model\.)+")


@dataclass(frozen=True, slots=True)
class TensorFact:
    """What a safetensors header says of a tensor."""

    shape: tuple[int, ...]
    dtype: str
    """safetensors' name, for example BF16."""
    file: str


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """A directory of model files; `field` and `identity` name the model in error messages."""

    path: Path
    identity: str
    field: str

    def invalid(self, rule: str, hint: str, *, code: str = "ModelInvalid") -> ConfigError:
        """Return the ConfigError of this model: the broken rule, and the hint."""
        return ConfigError(self.field, self.identity, rule, hint, code=code)

    def has(self, name: str) -> bool:
        """Return whether there is such an entry; an entry that is not a file is refused when it is read."""
        return (self.path / name).exists()

    def read_object(self, name: str) -> dict[str, Any]:
        """Return a JSON file's content, which must be an object; ConfigError names the file and its fault."""
        path = self.path / name
        if is_pointer(path):
            raise self._pointers([name])
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise self.invalid(f"{name} cannot be read: {_fault(error)}", _DAMAGED, code="ModelDamaged") from error
        if not isinstance(content, dict):
            rule = f"{name} holds {_json_type(content)} where an object is needed"
            raise self.invalid(rule, _DAMAGED, code="ModelDamaged")
        return content

    def weight_bytes(self) -> int:
        """Return the bytes of all tensors; ConfigError if the index states another size.

        Call it after `tensor_facts`, which finds damaged files.
        """
        stored = sum(_data_bytes(self.path / name) for name in self.weight_files())
        if not self.has(_SINGLE_FILE) and self.has(INDEX_FILE):
            self._check_stated_bytes(stored)
        return stored

    def _check_stated_bytes(self, stored: int) -> None:
        metadata = self.read_object(INDEX_FILE).get("metadata")
        stated = metadata.get("total_size") if isinstance(metadata, dict) else None
        if stated is None:
            return
        is_number = isinstance(stated, int | float) and not isinstance(stated, bool)
        if not is_number or not abs(stated - stored) <= _INDEX_TOLERANCE * stored:
            raise self.invalid(
                f"metadata.total_size of {INDEX_FILE} is {str(stated)[:80]}, but the headers of its files describe "
                f"{stored} bytes of weights",
                "Copy or download the index and all files of one version of the model, or correct the index.",
                code="ModelDamaged",
            )

    def check_pointers(self, names: Iterable[str]) -> None:
        """Refuse Git LFS pointers in place of files."""
        if found := sorted(name for name in names if is_pointer(self.path / name)):
            raise self._pointers(found)

    def _pointers(self, names: Sequence[str]) -> ConfigError:
        return self.invalid(
            f"{shown(names)} {'is a Git LFS pointer' if len(names) == 1 else 'are Git LFS pointers'}, not the content",
            "Run `git lfs pull` in the directory that it was copied from, or download the model again.",
            code="ModelDamaged",
        )

    def weight_files(self) -> list[str]:
        """Return the names of the safetensors files that hold the model, by Transformers' rule."""
        if self.has(_SINGLE_FILE):
            return [_SINGLE_FILE]
        if self.has(INDEX_FILE):
            return self._indexed_files()
        others = [path.name for path in self.path.glob(f"*{WEIGHTS_SUFFIX}")]
        return sorted(name for name in others if is_model_file(name) and not name.startswith("adapter_"))

    def _indexed_files(self) -> list[str]:
        files = sorted(set(self._weight_map().values()))
        if absent := [name for name in files if not self.has(name)]:
            raise self.invalid(
                f"{INDEX_FILE} names files that are not there: {shown(absent)}",
                "Copy or download all files of the model.",
                code="WeightsMissing",
            )
        return files

    def _weight_map(self) -> dict[str, str]:
        """Return tensor -> file of the index."""
        places = self.read_object(INDEX_FILE).get("weight_map")
        if not isinstance(places, dict) or not places or not all(map(_is_file_name, places.values())):
            raise self.invalid(
                f"weight_map of {INDEX_FILE} is not an object of tensor names and names of *.safetensors files",
                _DAMAGED,
                code="ModelDamaged",
            )
        return places

    def tensor_facts(self) -> dict[str, TensorFact]:
        """Return name -> fact of every tensor, read from the files' headers.

        ConfigError for a file that is damaged or cut, for a tensor in two files, and for an index that names a tensor
        which its file does not hold.
        """
        facts: dict[str, TensorFact] = {}
        files = self.weight_files()
        self.check_pointers(files)
        for file in files:
            for name, fact in self._header(file).items():
                if name in facts:
                    rule = f"both {facts[name].file} and {file} hold {name}"
                    raise self.invalid(rule, "Remove the files that are not of this model.", code="ModelDamaged")
                facts[name] = fact
        if not self.has(_SINGLE_FILE) and self.has(INDEX_FILE):
            self._check_index(facts)
        return facts

    def _header(self, file: str) -> dict[str, TensorFact]:
        try:
            with safe_open(self.path / file, framework="numpy") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
                return {
                    name: TensorFact(tuple(part.get_shape()), part.get_dtype(), file) for name, part in slices.items()
                }
        except (OSError, SafetensorError, ValueError) as error:
            raise self.invalid(
                f"{file} is damaged or cut: {_fault(error)}",
                "Copy or download the file again.",
                code="ModelDamaged",
            ) from error

    def _check_index(self, facts: Mapping[str, TensorFact]) -> None:
        wrong = [
            f"{name} (in {file})"
            for name, file in self._weight_map().items()
            if name not in facts or facts[name].file != file
        ]
        if wrong:
            raise self.invalid(
                f"its files hold no weights for {shown(wrong)}, as {INDEX_FILE} has it",
                "Copy or download the index and all files of one version of the model.",
                code="WeightsMissing",
            )

    def check_names(self, facts: Mapping[str, TensorFact]) -> None:
        """Refuse weights without content and weights saved from inside a wrapper."""
        if not facts:
            raise self.invalid("its files hold no tensors", "Copy or save the model again.", code="WeightsMissing")
        if empty := sorted(name for name, fact in facts.items() if 0 in fact.shape):
            raise self.invalid(
                f"its files hold tensors of size 0: {shown(empty)}",
                "Save the model again with its weights gathered (ZeRO-3: stage3_gather_16bit_weights_on_model_save).",
                code="WeightsMissing",
            )
        prefix = wrapper_prefix(facts)
        if prefix is not None:
            raise self.invalid(
                f"the names of all its {len(facts)} tensors begin with {prefix!r}, as a wrapper saves them, so none "
                "would be loaded",
                "Save the model inside the wrapper (model.module, model._orig_mod; PEFT: merge_and_unload()), or "
                "rename the tensors.",
                code="WeightsMissing",
            )


_DAMAGED = "Copy or download the model again."


def is_model_file(name: str) -> bool:
    """Return whether a loader of Transformers' format may read a file; `name` is relative to the model's directory."""
    path = PurePosixPath(name)
    if len(path.parts) > 1:
        return len(path.parts) == 2 and path.parts[0] == _TEMPLATES and path.suffix == ".jinja"
    return _matches(name, _PATTERNS) and not _matches(name, _OF_OTHER_LOADERS)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def header_end(content: bytes) -> int | None:
    """Return where the header of a safetensors file ends, which begins with `content`; None if it has no header."""
    if len(content) < HEADER_LENGTH_BYTES:
        return None
    return HEADER_LENGTH_BYTES + int.from_bytes(content[:HEADER_LENGTH_BYTES], "little")


def data_starts(path: Path) -> dict[str, int]:
    """Return the place in a safetensors file at which each tensor's data begins, in bytes."""
    with path.open("rb") as file:
        end = header_end(file.read(HEADER_LENGTH_BYTES)) or 0
        header = json.loads(file.read(end - HEADER_LENGTH_BYTES))
    return {name: end + entry["data_offsets"][0] for name, entry in header.items() if "data_offsets" in entry}


def _data_bytes(path: Path) -> int:
    with path.open("rb") as file:
        begin = header_end(file.read(HEADER_LENGTH_BYTES)) or 0
    return path.stat().st_size - begin


def is_quantised(config: Mapping[str, Any]) -> bool:
    """Return whether the configuration says that the files hold quantised weights."""
    nested = config.get("text_config")
    places = [config, nested] if isinstance(nested, Mapping) else [config]
    return any(place.get(key) for place in places for key in ("quantization_config", "compression_config"))


def is_pointer(path: Path) -> bool:
    """Return whether the file is what Git LFS leaves in place of a large file."""
    try:
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def wrapper_prefix(names: Iterable[str]) -> str | None:
    """Return what a wrapper (DDP, torch.compile, FSDP, PEFT) put in front of every name, or None."""
    found = [_WRAPPERS.match(name) for name in names]
    prefixes = {match.group() for match in found if match is not None}
    if not found or None in found:
        return None
    return min(prefixes, key=len)


def shown(names: Sequence[str], limit: int = _NAMES_SHOWN) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(name[:200] for name in names[:limit]) + more


def _fault(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "its values are nested too deep"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 (byte {error.start})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error)


def _is_file_name(value: object) -> bool:
    return isinstance(value, str) and value.endswith(".safetensors") and Path(value).name == value


def _json_type(value: object) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
