"""Checks of sampling options by backend, and of vLLM's further arguments by name. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from wrpo_engine.errors import ConfigError

_SPEC_FIELDS = {
    "model": "target.model or sources[].model",
    "revision": "target.revision or sources[].revision",
    "tokenizer": "target.model or sources[].model (its own tokenizer is used)",
    "trust_remote_code": "target.trustRemoteCode or sources[].trustRemoteCode",
    "seed": "sampling.seed",
    "dtype": "sampling.dtype",
    "max_model_len": "sampling.maxModelLength",
    "quantization": "sampling.quantization",
    "tensor_parallel_size": "sampling.tensorParallelSize",
    "gpu_memory_utilization": "sampling.gpuMemoryUtilization",
    "data_parallel_size": "sampling.shards",
}
"""Arguments that the engine sets itself -> the field of the experiment's spec that says their value."""
_FORBIDDEN = {
    "hf_token": "credentials must not be part of an experiment; give the pod HF_TOKEN from a Secret",
    "skip_tokenizer_init": "without a tokenizer there are no texts",
    "runner": "sampling needs a model that generates",
    "convert": "sampling needs a model that generates",
    "code_revision": "remote code runs only from the model's own pinned revision",
    "tokenizer_revision": "the tokenizer is the one of the model's revision",
}
_ALLOWED: Mapping[str, tuple[tuple[str, ...], str]] = {
    "load_format": (
        ("auto", "safetensors", "fastsafetensors", "runai_streamer"),
        "only safetensors are loaded, as other formats can run code",
    ),
    "config_format": (("auto", "hf"), "the model is described by its config.json"),
    "tokenizer_mode": (("auto", "hf"), "the tokenizer is the one that Transformers reads"),
}
"""Arguments of which only some values are accepted, and why."""
PINNED = {"load_format": "safetensors", "config_format": "hf", "tokenizer_mode": "hf"}
"""Instead of `auto`, by which vLLM prefers Mistral's own files where it finds them: other code for weights, config and
tokenizer than the checks here and all other stages use."""
_MAX_SHOWN = 3


def check_backend_options(
    backend: Literal["vLLM", "Transformers"], *, quantization: str | None, engine_args: Mapping[str, Any]
) -> None:
    """Refuse vLLM's options where vLLM does not run: ignoring them would give other responses than requested."""
    if backend == "vLLM":
        return
    if quantization is not None:
        raise ConfigError(
            "sampling.quantization",
            quantization,
            "the Transformers backend takes the weights as their config says",
            "Leave it out, or set sampling.backend: vLLM.",
        )
    if engine_args:
        raise ConfigError(
            "sampling.engineArgs",
            ", ".join(sorted(engine_args)),
            "these are arguments of vLLM, and the backend is Transformers",
            "Leave them out, or set sampling.backend: vLLM.",
        )


def check_engine_args(engine_args: Mapping[str, Any], known: Collection[str], *, served: str | None = None) -> None:
    """Refuse names that vLLM does not have (`known` are those it has) and those that have a field in the spec.

    `served` is the section of a judge's own model. None: that of sampling.
    """
    separate = _SPEC_FIELDS if served is None else _fields_of_served(served)
    for name, value in engine_args.items():
        field = f"{served or 'sampling'}.engineArgs.{name}"
        if name in separate:
            raise ConfigError(field, _shown(value), "it has a separate field", f"Set {separate[name]} instead.")
        if name in _FORBIDDEN:
            # A secret must not reach logs and status.
            shown = "<hidden>" if name == "hf_token" else _shown(value)
            raise ConfigError(field, shown, _FORBIDDEN[name], "Leave it out.")
        if name not in known:
            raise ConfigError(
                field, _shown(value), "this vLLM has no such argument", _did_you_mean(name, [*known, *separate])
            )
        allowed, rule = _ALLOWED.get(name, ((), ""))
        if allowed and value not in allowed:
            raise ConfigError(field, _shown(value), rule, f"Use one of {', '.join(allowed)}.")


def _fields_of_served(section: str) -> dict[str, str]:
    """Return the field that says the value of each argument that the stage of a judge sets itself."""
    model = f"{section}.model"
    return {
        "model": model,
        "served_model_name": model,
        "tokenizer": f"{model} (its own tokenizer is used)",
        "revision": f"{section}.revision",
        "trust_remote_code": f"{section}.trustRemoteCode",
        "max_model_len": f"{section}.maxModelLength",
        "tensor_parallel_size": f"{section}.tensorParallelSize",
        "gpu_memory_utilization": f"{section}.gpuMemoryUtilization",
    }


def pinned_formats(engine_args: Mapping[str, Any]) -> dict[str, Any]:
    """Return vLLM's arguments for the formats of files: the user's, and never what vLLM would detect by itself."""
    given = {name: engine_args.get(name, "auto") for name in PINNED}
    return {name: PINNED[name] if value == "auto" else value for name, value in given.items()}


def check_quantization(name: str | None, known: Sequence[str]) -> None:
    """Raise ConfigError for a quantisation that is not among the `known` ones of vLLM."""
    if name is not None and name not in known:
        raise ConfigError(
            "sampling.quantization",
            name,
            "this vLLM has no such quantisation",
            f"{_did_you_mean(name, known)} It has: {', '.join(sorted(known))}.",
        )


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, sorted(set(known)), n=_MAX_SHOWN, cutoff=0.5)
    return f"Did you mean {' or '.join(close)}?" if close else "Check the spelling."


def _shown(value: object) -> object:
    text = str(value)
    return value if len(text) <= 80 else f"{text[:79]}…"
