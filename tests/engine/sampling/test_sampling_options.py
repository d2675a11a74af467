"""Options that a backend cannot use are refused, with the name of what to use instead."""

from __future__ import annotations

from typing import Any

import pytest

from wrpo_engine.config import SPEED_ENGINE_ARGS
from wrpo_engine.errors import ConfigError, TemporaryError
from wrpo_engine.sampling.options import check_backend_options, check_engine_args, check_quantization, pinned_formats
from wrpo_engine.sampling.sampler import FinishReason, SamplerSettings
from wrpo_engine.sampling.vllm_sampler import finish_reason_of, prompts_in_flight

KNOWN = [
    "model",
    "seed",
    "dtype",
    "max_num_seqs",
    "max_num_batched_tokens",
    "kv_cache_dtype",
    "load_format",
    "config_format",
    "tokenizer_mode",
    "hf_token",
]

REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "misspelt": (
        {"max_num_seq": 8},
        "sampling.engineArgs.max_num_seq is 8: this vLLM has no such argument",
        "Did you mean max_num_seqs",
    ),
    "like nothing": (
        {"colour": "red"},
        "sampling.engineArgs.colour is 'red': this vLLM has no such argument",
        "Check the spelling.",
    ),
    "has a field": (
        {"kv_cache_dtype": "fp8", "max_model_len": 4096},
        "sampling.engineArgs.max_model_len is 4096: it has a separate field",
        "Set sampling.maxModelLength instead.",
    ),
    "the model": (
        {"model": "other"},
        "sampling.engineArgs.model is 'other': it has a separate field",
        "Set target.model or sources[].model instead.",
    ),
    "a secret": (
        {"hf_token": "hf_x"},
        "sampling.engineArgs.hf_token is '<hidden>': credentials must not be part of an experiment",
        "Leave it out.",
    ),
    "pickles": (
        {"load_format": "pt"},
        "sampling.engineArgs.load_format is 'pt': only safetensors are loaded, as other formats can run code",
        "Use one of auto, safetensors, fastsafetensors, runai_streamer.",
    ),
    "weights in another layout": (
        {"load_format": "mistral"},
        "sampling.engineArgs.load_format is 'mistral': only safetensors are loaded",
        "Use one of auto, safetensors",
    ),
    "another config": (
        {"config_format": "mistral"},
        "sampling.engineArgs.config_format is 'mistral': the model is described by its config.json",
        "Use one of auto, hf.",
    ),
    "another tokenizer": (
        {"tokenizer_mode": "mistral"},
        "sampling.engineArgs.tokenizer_mode is 'mistral': the tokenizer is the one that Transformers reads",
        "Use one of auto, hf.",
    ),
}


@pytest.mark.parametrize(("arguments", "message", "hint"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_engine_arguments_say_what_to_do(arguments: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_engine_args(arguments, KNOWN)
    assert error.value.message.startswith(message)
    assert error.value.hint is not None
    assert error.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("name", "value", "rule", "hint"),
    [
        ("max_model_len", 512, "it has a separate field", "Set evaluation.judges[own].serve.maxModelLength instead."),
        ("served_model_name", "x", "it has a separate field", "Set evaluation.judges[own].serve.model instead."),
        ("port", 80, "this vLLM has no such argument", "Check the spelling."),
    ],
)
def test_refused_engine_arguments_of_a_judge_name_its_section(name: str, value: object, rule: str, hint: str) -> None:
    check_engine_args({"dtype": "bfloat16", "quantization": "fp8"}, {*KNOWN, "dtype", "quantization"}, served="s")
    with pytest.raises(ConfigError) as error:
        check_engine_args({name: value}, {*KNOWN, "served_model_name"}, served="evaluation.judges[own].serve")
    assert error.value.field == f"evaluation.judges[own].serve.engineArgs.{name}"
    assert error.value.message.endswith(f": {rule}")
    assert error.value.hint == hint


def test_known_engine_arguments_pass() -> None:
    check_engine_args({"max_num_seqs": 64, "kv_cache_dtype": "fp8", "load_format": "safetensors"}, KNOWN)


def test_an_unknown_quantisation_shows_those_there_are() -> None:
    check_quantization("awq", ["awq", "fp8"])
    check_quantization(None, ["awq", "fp8"])
    with pytest.raises(ConfigError) as error:
        check_quantization("afq", ["awq", "fp8", "gptq"])
    assert error.value.message == "sampling.quantization is 'afq': this vLLM has no such quantisation"
    assert error.value.hint == "Did you mean awq? It has: awq, fp8, gptq."


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"quantization": "awq", "engine_args": {}}, "sampling.quantization"),
        ({"quantization": None, "engine_args": {"max_num_seqs": 8}}, "sampling.engineArgs"),
    ],
)
def test_options_of_vllm_are_not_ignored_by_the_other_backend(options: dict[str, Any], field: str) -> None:
    check_backend_options("vLLM", **options)
    with pytest.raises(ConfigError) as error:
        check_backend_options("Transformers", **options)
    assert error.value.field == field
    assert (error.value.hint or "").endswith("or set sampling.backend: vLLM.")


def test_every_argument_for_speed_is_one_of_vllm_s() -> None:
    pytest.importorskip("vllm")
    from dataclasses import fields

    from vllm.engine.arg_utils import EngineArgs

    assert {field.name for field in fields(EngineArgs)} >= SPEED_ENGINE_ARGS


@pytest.mark.parametrize(
    ("reason", "meaning"),
    [("stop", FinishReason.STOP), ("length", FinishReason.LENGTH), ("repetition", FinishReason.LENGTH)],
)
def test_reasons_of_vllm_for_an_answer_s_end(reason: str, meaning: FinishReason) -> None:
    assert finish_reason_of(reason, "p1") is meaning


@pytest.mark.parametrize("reason", ["abort", "error", None])
def test_an_answer_that_vllm_gave_up_on_is_no_answer(reason: str | None) -> None:
    with pytest.raises(TemporaryError, match=f"p1: finish reason {reason}"):
        finish_reason_of(reason, "p1")


@pytest.mark.parametrize(
    ("engine_args", "at_least", "prompts"),
    [({}, 1024, 1024), ({"max_num_seqs": 256}, 1024, 1024), ({"max_num_seqs": 4096}, 1024, 8192), ({}, 2, 2)],
)
def test_the_engine_always_has_prompts_waiting(engine_args: dict[str, int], at_least: int, prompts: int) -> None:
    settings = SamplerSettings(
        temperature=1, top_p=1, max_tokens=1, stop_token_ids=(), engine_args=engine_args, in_flight=at_least
    )
    assert prompts_in_flight(settings) == prompts


@pytest.mark.parametrize(
    ("given", "loaded"), [({}, "safetensors"), ({"load_format": "auto"}, "safetensors"), ({"load_format": "x"}, "x")]
)
def test_vllm_is_never_left_to_detect_the_format_of_a_model(given: dict[str, str], loaded: str) -> None:
    assert pinned_formats(given) == {"load_format": loaded, "config_format": "hf", "tokenizer_mode": "hf"}
