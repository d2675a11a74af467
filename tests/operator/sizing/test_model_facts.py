"""Facts about models: what config.json says under any name, and what it must not say."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrpo_engine.contract.model_facts import FactsError, ModelFacts, facts_of
from wrpo_operator.sizing.memory import loaded_bytes

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
}
PARAMETERS = 2 * 300 * 64 + 2 * (64 * 8 * (16 + 4) + 3 * 64 * 192 + 2 * 64) + 64
REMEDY = "Name a model whose config.json is complete, or set the stage's accelerators."


def facts(weight_bytes: int | None = None, stored: int | None = None, **changes: Any) -> ModelFacts:
    return facts_of({**LLAMA, **changes}, weight_bytes=weight_bytes, stored_parameters=stored)


def test_facts_of_a_usual_config() -> None:
    assert facts() == ModelFacts(
        model_type="llama",
        parameters=PARAMETERS,
        weight_bytes=2 * PARAMETERS,
        layers=2,
        hidden_size=64,
        attention_heads=8,
        key_value_heads=2,
        head_size=8,
        feed_forward_size=192,
        splittable=64,  # the greatest common divisor of 192 and the padded vocabulary, 320
        vocabulary=300,
        context=512,
        dtype="bfloat16",
    )


def test_fields_have_their_older_names_too() -> None:
    renamed = {
        "model_type": "llama",
        "n_embd": 64,
        "n_inner": 192,
        "n_layer": 2,
        "n_head": 8,
        "num_kv_heads": 2,
        "padded_vocab_size": 300,
        "n_positions": 512,
        "dtype": "bfloat16",
    }
    assert facts_of(renamed, weight_bytes=None) == facts()


def test_the_weights_decide_the_bytes_and_the_stored_values_the_parameters() -> None:
    found = facts(weight_bytes=4 * PARAMETERS, stored=PARAMETERS + 7, torch_dtype=None)
    assert (found.weight_bytes, found.parameters, found.dtype) == (4 * PARAMETERS, PARAMETERS + 7, "float32")


def test_a_config_that_nests_the_language_model_is_read_there() -> None:
    nested = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "torch_dtype": "bfloat16",
        "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
        | {"model_type": "gemma3_text"},
        "vision_config": {"hidden_size": 1152},
    }
    found = facts_of(nested, weight_bytes=8_600_158_944, stored_parameters=4_300_079_472)
    assert (found.model_type, found.key_value_heads, found.head_size) == ("gemma3_text", 4, 256)
    assert (found.vocabulary, found.context, found.dtype) == (262208, 131072, "bfloat16")
    assert (found.parameters, found.weight_bytes) == (4_300_079_472, 8_600_158_944)


TOWER = 40_000
"""Bytes of weights that read images or sound."""
PARTS: dict[str, dict[str, Any]] = {
    "images": {"vision_config": {"hidden_size": 8}},
    "sound": {"audio_config": {"d_model": 8}},
    "both next to the language model": {"vision_config": {"depth": 2}, "audio_config": {"d_model": 8}},
}


@pytest.mark.parametrize("is_nested", [True, False])
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS.keys())
def test_the_index_counts_towers_of_images_and_sound_that_an_engine_loads(
    parts: dict[str, Any], is_nested: bool
) -> None:
    text = dict(LLAMA)
    config = {"model_type": "several", "text_config": text, **parts} if is_nested else {**text, **parts}
    found = facts_of(config, weight_bytes=2 * PARAMETERS + TOWER)
    assert found.weight_bytes == loaded_bytes(found) == 2 * PARAMETERS + TOWER
    assert found.parameters == PARAMETERS + TOWER // 2
    assert loaded_bytes(found, "fp8") == found.parameters


def test_latent_attention_caches_its_ranks() -> None:
    latent = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 16, "v_head_dim": 16}
    assert facts(**latent).latent_size == 576


@pytest.mark.parametrize(
    ("section", "method", "bytes_each"),
    [
        ({"quant_method": "fp8"}, "fp8", 1.0),
        ({"quant_method": "gptq", "bits": 8}, "gptq", 1.0),
        ({"quant_method": "gptq", "bits": 3}, "gptq", 0.55),
        ({"quant_method": "awq"}, "awq", 0.55),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}},
         "compressed-tensors", 0.55),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}},
         "compressed-tensors", 1.0),
        ({"quant_method": "compressed-tensors", "config_groups": []}, "compressed-tensors", 1.0),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes", 0.55),
        ({}, "unknown", 1.0),
    ],
)  # fmt: skip
def test_quantised_weights_are_counted_by_their_bits(section: dict[str, Any], method: str, bytes_each: float) -> None:
    found = facts(quantization_config=section)
    assert (found.quantization, found.parameters) == (method, PARAMETERS)
    ends = 2 * 300 * 64  # The embedding and the output stay in bfloat16.
    assert found.weight_bytes == pytest.approx((PARAMETERS - ends) * bytes_each + 2 * ends, abs=1)


def test_packed_values_of_quantised_weights_are_no_parameters() -> None:
    found = facts(weight_bytes=PARAMETERS, stored=PARAMETERS // 8, quantization_config={"quant_method": "awq"})
    assert (found.parameters, found.weight_bytes) == (PARAMETERS, PARAMETERS)


def test_an_unlisted_architecture_is_counted_by_its_weights_and_needs_its_code() -> None:
    found = facts(weight_bytes=1000, model_type="novel", auto_map={"AutoConfig": "configuration_novel.Config"})
    assert (found.parameters, found.weight_bytes, found.needs_code) == (500, 1000, True)
    assert not facts(auto_map={"AutoConfig": "configuration_llama.Config"}).needs_code


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_hidden_layers": None},
            "config.json of model_type 'llama': there is no num_hidden_layers (nor n_layer, n_layers, num_layers)",
        ),
        ({"hidden_size": "4k"}, "config.json: hidden_size is '4k'; it must be a whole number from 0 to "),
        ({"vocab_size": -1}, "config.json: vocab_size is -1; it must be a whole number from 0 to "),
        ({"num_attention_heads": True}, "config.json: num_attention_heads is True; it must be a whole number"),
        ({"num_key_value_heads": 3}, "num_attention_heads is 8 and num_key_value_heads is 3; it must be a multiple."),
        ({"model_type": None}, "config.json: model_type is None; it must name the model's architecture."),
        ({"hidden_size": 4}, "config.json: hidden_size is 4, below num_attention_heads (8)."),
        ({"quantization_config": "fp8"}, "config.json: quantization_config is 'fp8'; it must be an object."),
        ({"num_hidden_layers": 0}, "config.json of model_type 'llama': num_hidden_layers is 0, which is needed"),
        ({"layer_types": None, "num_hidden_layers": [1, 2]}, "config.json: num_hidden_layers is [1, 2]; it must be"),
    ],
)
def test_a_wrong_config_is_refused_with_field_value_and_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FactsError, match=re.escape(message)) as caught:
        facts(**changes)
    assert REMEDY in str(caught.value)


@pytest.mark.parametrize("weight_bytes", [PARAMETERS // 2, 9 * PARAMETERS])
def test_an_index_whose_size_cannot_be_that_of_the_model_is_refused(weight_bytes: int) -> None:
    with pytest.raises(FactsError, match=f"The weight files have {weight_bytes} bytes by their index or headers"):
        facts(weight_bytes=weight_bytes)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
NAMES = sorted({*LLAMA, "num_experts", "architectures", "text_config", "quantization_config", "auto_map", "id2label"})


@given(
    changes=st.dictionaries(st.sampled_from([*NAMES, "mlp_only_layers", "kv_lora_rank", "position_buckets"]), JSON),
    size=st.none() | st.integers(min_value=1, max_value=2**60),
)
def test_any_config_gives_facts_or_one_clear_error(changes: dict[str, Any], size: int | None) -> None:
    try:
        found = facts(weight_bytes=size, **changes)
    except FactsError as error:
        message = str(error)
    else:
        message = ""
        assert found.parameters >= 1
    assert not message or message.endswith("or set the stage's accelerators.")
