"""Tiny models of many architectures and rows that stress every corner of a layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from architectures import SIZES, WINDOW
from torch import Tensor

from wrpo_engine.training.batch.collate import collate
from wrpo_engine.training.batch.layout import Layout
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.models.model import LogpModel, disable_dropout

ROWS = [
    TokenRow("mixed lengths", tuple(range(3, 14)), ((5, 6, 7, 2), (8, 2), (9, 10, 11, 12, 13, 14, 15, 2))),
    TokenRow("prompt of one token, response of one token", (4,), ((2,), (9, 2), (5, 6, 7, 2))),
    TokenRow("long", tuple(range(20, 40)), (tuple(range(40, 60)), (3, 2), (2,))),
    TokenRow("nothing but the prompt is computed", (8, 9, 10), ((2,), (3,), (2,))),
]
UPSTREAM = torch.linspace(-1.0, 2.0, 12, dtype=torch.float64)
"""Gradients of the loss with respect to the twelve sequences' log-probabilities: all different, of both signs."""

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama with as many key-value heads as query heads": {"num_key_value_heads": 4},
    "mistral": {"sliding_window": None},
    "mistral with a sliding window": WINDOW,
    "qwen2": {},
    "qwen2 with windows in some layers": {"use_sliding_window": True, "max_window_layers": 1, **WINDOW},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 8},
    "gemma2 with soft-capped scores and windows": {"head_dim": 8, "attn_logit_softcapping": 5.0, **WINDOW},
    "gemma3_text with windows": {"head_dim": 8, **WINDOW},
    "phi3": {},
    "granite with its scalings": {"logits_scaling": 2.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5},
    "cohere": {},
    "olmo2": {},
    "smollm3": {},
    "starcoder2": {},
    "mixtral": {"num_local_experts": 4},
    "gpt2": {"n_positions": 256},
}
"""Settings in addition to the sizes; the first word is the model_type."""


def make_causal_lm(
    architecture: str = "llama",
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """Return a tiny model of random weights; `settings` in place of the table's."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type = architecture.split(maxsplit=1)[0]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        model_type, **{**SIZES, **(ARCHITECTURES[architecture] if settings is None else settings)}
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    disable_dropout(model)
    return model.train()


def logps_and_gradients(
    causal_lm: Any, layout: Layout, rows: Sequence[TokenRow] = ROWS, upstream: Tensor = UPSTREAM
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return [S] and the gradient of their weighted sum with respect to every parameter."""
    causal_lm.zero_grad(set_to_none=True)
    logps = LogpModel(causal_lm, layout)(batch=collate(rows, layout))
    (logps * upstream.to(logps.dtype)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in causal_lm.named_parameters() if parameter.grad is not None}
    return logps.detach(), gradients


def logps_of_separate_sequences(causal_lm: Any, rows: Sequence[TokenRow], upstream: Tensor) -> Tensor:
    """Return [S] by plain Transformers, one sequence at a time with all of its logits, adding up gradients."""
    causal_lm.zero_grad(set_to_none=True)
    sums: list[Tensor] = []
    for row in rows:
        for response in row.responses:
            logits = causal_lm(torch.tensor([[*row.prompt, *response]])).logits[0, len(row.prompt) - 1 : -1]
            logps = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
            total = logps.gather(-1, torch.tensor(response)[:, None]).sum()
            (total * upstream[len(sums)].to(total.dtype)).backward()
            sums.append(total.detach())
    return torch.stack(sums)
