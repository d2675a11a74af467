"""How many tokens a model can attend to, as its configuration has it."""

from __future__ import annotations

from typing import Any

import pytest

from wrpo_engine.loading.context import context_of

CASES: dict[str, tuple[dict[str, Any], int | None]] = {
    "rotary": ({"max_position_embeddings": 4096}, 4096),
    "GPT-2": ({"model_type": "gpt2", "n_positions": 1024, "n_ctx": 512}, 1024),
    "OPT's two extra rows are no tokens": ({"model_type": "opt", "max_position_embeddings": 2048}, 2048),
    "MPT has a table of its ALiBi": ({"model_type": "mpt", "max_seq_len": 2048}, 2048),
    "Falcon with ALiBi": ({"model_type": "falcon", "alibi": True, "max_position_embeddings": 2048}, None),
    "Falcon with rotary positions": ({"model_type": "falcon", "alibi": False, "max_position_embeddings": 2048}, 2048),
    "BLOOM": ({"model_type": "bloom", "seq_length": 2048}, None),
    "RoBERTa's rows up to the padding's": (
        {"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1},
        512,
    ),
    "a sliding window is no end": ({"max_position_embeddings": 32768, "sliding_window": 4096}, 32768),
    "linear scaling": ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
    "YaRN": (
        {
            "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        },
        131072,
    ),
    "YaRN whose length is the scaled one": (
        {
            "max_position_embeddings": 163840,
            "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
        },
        163840,
    ),
    "Llama 3's scaling is part of the length": (
        {"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        131072,
    ),
    "Gemma 3's by type of layer, too": (
        {
            "text_config": {
                "max_position_embeddings": 131072,
                "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}},
            }
        },
        131072,
    ),
    "a model of text and images": ({"text_config": {"max_position_embeddings": 8192}}, 8192),
    "no end": ({"max_position_embeddings": -1}, None),
    "nothing said": ({}, None),
    "of the wrong type": ({"max_position_embeddings": "long", "n_positions": True}, None),
    "a factor of the wrong type": (
        {"max_position_embeddings": 64, "rope_scaling": {"type": "yarn", "factor": "x"}},
        64,
    ),
}


@pytest.mark.parametrize(("config", "length"), CASES.values(), ids=list(CASES))
def test_the_context_is_what_the_configuration_says(config: dict[str, Any], length: int | None) -> None:
    assert context_of(config) == length
