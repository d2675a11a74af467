"""Whether a model needs the Python code of its repository, by its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wrpo_engine.contract.data import ModelUse
from wrpo_engine.hub.models import UNKNOWN_KIND, ResolvedModel, code_error

VLLM_KINDS = frozenset(
    {
        "RefinedWeb",
        "RefinedWebModel",
        "bagel",
        "bailing_moe_v3_vl",
        "chatglm",
        "colpali",
        "colqwen3",
        "cosmos3_edge",
        "deepseek_v32",
        "deepseek_v4",
        "deepseek_v41",
        "deepseek_vl_v2",
        "dots3_note",
        "eagle",
        "funaudiochat",
        "hy_v4",
        "hyperclovax",
        "inkling_mm_model",
        "inkling_model",
        "isaac",
        "k3_dspark",
        "kimi_k2",
        "kimi_k25",
        "kimi_k3",
        "kimi_linear",
        "kimi_vl",
        "medusa",
        "midashenglm",
        "minimax_m3_mtp",
        "minimax_m3_vl",
        "mlp_speculator",
        "modernvbert",
        "moondream3",
        "moss_transcribe_diarize",
        "muse_glimmer",
        "muse_glimmer_assistant",
        "muse_glimmer_text",
        "muse_glimmer_vision",
        "openvla",
        "ops_colqwen3",
        "ovis",
        "qianfan_ocr",
        "qwen3_asr",
        "qwen3_vl_nemotron_embed",
        "speculators",
        "step3_text",
        "step3_vl",
        "step3p5",
        "ultravox",
        "unlimited-ocr",
        "unlimited_ocr",
    }
)
"""Values of model_type whose configuration vLLM has and Transformers may not have. The stage runs without vLLM."""
_CODE = "auto_map"


def needs_code(config: Mapping[str, Any], *more_kinds: str) -> bool:
    """Return whether Transformers knows a model only by code of its repository; nor is it one of `more_kinds`."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = config.get("model_type")
    return bool(config.get(_CODE)) and kind not in CONFIG_MAPPING_NAMES and kind not in more_kinds


def check_code(model: ResolvedModel, config: Mapping[str, Any], use: ModelUse) -> None:
    """Raise ConfigError if a use needs the code of the model's repository and the experiment does not allow it."""
    more = VLLM_KINDS if use.backend == "vLLM" else ()
    if use.trust_remote_code or not needs_code(config, *more):
        return
    raise code_error(model.identity, use.field, UNKNOWN_KIND.format(kind=str(config.get("model_type"))[:80]))
