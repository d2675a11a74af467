"""Fused attention that honours every argument of a layer, in all stages.

Transformers' fused attention passes over arguments that it does not know, such as Gemma 2's cap of scores: another
model is computed, in policy and reference alike, without a warning. Transformers itself names these arguments: its
reference of every architecture, `eager_attention_forward` next to the layer's class, names them. A layer that gives one
of them a value is computed by that reference; every other one is fused as before.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import Tensor, nn

NAME = "wrpo_exact"
_unknown: dict[str, frozenset[str]] = {}
"""Python module of a layer's class -> the arguments that only its eager attention knows. Filled before the first call,
as compiled code may look up but not inspect."""


def load_arguments(config: Any) -> dict[str, str]:
    """Return what `from_pretrained` needs so that its model computes what its architecture says.

    Falcon with ALiBi has separate attention classes, chosen when the model is made; the fused one rounds the biases.
    """
    has_alibi = getattr(config.get_text_config(), "alibi", False)
    return {"attn_implementation": "eager"} if has_alibi else {}


def use_exact_attention(model: Any) -> None:
    """Make every layer of a model with fused attention keep its arguments; other models are not changed."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if getattr(model.config, "_attn_implementation", None) != "sdpa":
        return
    places = {type(module).__module__ for module in model.modules()}
    _unknown.update({place: _only_eager_knows(place) for place in places - _unknown.keys()})
    if not any(_unknown[place] for place in places):
        return
    AttentionInterface.register(NAME, exact_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def needs_eager(module: nn.Module, arguments: dict[str, Any]) -> bool:
    """Return whether a layer passes an argument that the fused attention would ignore."""
    names = _unknown.get(type(module).__module__, frozenset())
    return any(arguments.get(name) is not None for name in names)


def exact_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **arguments: Any
) -> tuple[Tensor, Tensor | None]:
    """Return what Transformers' attention functions return; query [batch, heads, queries, size]."""
    if needs_eager(module, arguments):
        eager = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
        mask = _additive(attention_mask, query, key)
        result: tuple[Tensor, Tensor | None] = eager(module, query, key, value, mask, **arguments)
        return result
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)
    return output, None


def _only_eager_knows(place: str) -> frozenset[str]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    eager = getattr(sys.modules.get(place), "eager_attention_forward", None)
    if eager is None:
        return frozenset()
    known = inspect.signature(sdpa_attention_forward).parameters.keys()
    named = [one for one in inspect.signature(eager).parameters.values() if one.kind is not one.VAR_KEYWORD]
    return frozenset(one.name for one in named) - known


def _additive(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
    """Return a mask as the eager attention adds it; a causal one, which fused attention does not need, is made here."""
    if mask is None:
        queries, keys = query.shape[2], key.shape[2]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)[None, None]
    if mask.dtype is not torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
