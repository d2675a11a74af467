"""DeBERTa's disentangled attention for inference, with the numbers of Transformers' and less work.

With r = i - j and b(r) its bucket, the score of query i and key j is

    (Q_i . K_j + Q_i . PK[b(r)] + K_j . PQ[b(r)]) / sqrt(d (1 + number of position terms))

PK and PQ follow from the weights alone, so they are computed once per model instead of once per batch. A position term
is computed by distance r, [L, 2L - 1], and read along its diagonals by strides, where Transformers gathers it from all
buckets. Softmax and values are PyTorch's fused attention, which takes the position terms as its mask.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

_DIRECT = 2
"""Up to this multiple of the buckets, products for each distance cost less than gathering those for each bucket."""


def use_fast_attention(encoder: Any) -> None:
    """Replace the attention of a DebertaV2Model's layers; its tables take the weights of this moment."""
    stack = encoder.encoder
    config = encoder.config
    if not getattr(config, "relative_attention", False) or not {"c2p", "p2c"} & set(config.pos_att_type or ()):
        return
    with torch.no_grad():
        embeddings = stack.get_rel_embedding()
        for layer in stack.layer:
            layer.attention.self = DisentangledAttention(layer.attention.self, embeddings)


class DisentangledAttention(nn.Module):
    """Attention of one layer."""

    position_keys: Tensor | None
    position_queries: Tensor | None

    def __init__(self, original: Any, rel_embeddings_RH: Tensor) -> None:  # noqa: N803 (shape suffixes)
        super().__init__()
        self.query_proj, self.key_proj, self.value_proj = original.query_proj, original.key_proj, original.value_proj
        self.heads = int(original.num_attention_heads)
        self.span = int(original.pos_ebd_size)
        self.buckets = int(original.position_buckets)
        self.longest = int(original.max_relative_positions)
        shares = original.share_att_key
        kinds = original.pos_att_type
        positions_RH = rel_embeddings_RH[: 2 * self.span]  # noqa: N806
        keys = (original.key_proj if shares else original.pos_key_proj) if "c2p" in kinds else None
        queries = (original.query_proj if shares else original.pos_query_proj) if "p2c" in kinds else None
        self.register_buffer("position_keys", None if keys is None else self._by_head(keys(positions_RH)))
        self.register_buffer("position_queries", None if queries is None else self._by_head(queries(positions_RH)))
        terms = 1 + (keys is not None) + (queries is not None)
        self.scale = 1 / math.sqrt(int(original.attention_head_size) * terms)

    def _by_head(self, rows: Tensor) -> Tensor:
        """Return [..., heads, rows, d] of [..., rows, heads * d]."""
        return rows.view(*rows.shape[:-1], self.heads, -1).transpose(-3, -2).contiguous()

    def forward(self, hidden_states: Tensor, attention_mask: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        """Return [B, L, H]. hidden_states: [B, L, H]; attention_mask: [B, 1, L, L], the same for all real queries."""
        query = self._by_head(self.query_proj(hidden_states))
        key = self._by_head(self.key_proj(hidden_states))
        value = self._by_head(self.value_proj(hidden_states))
        is_padding = ~attention_mask[:, :, :1].bool()
        bias = self._position_terms(query, key).masked_fill_(is_padding, torch.finfo(query.dtype).min)
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=self.scale)
        return context.transpose(1, 2).flatten(2), None

    def _position_terms(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the scaled position terms [B, heads, L, L], of query (rows) and key."""
        length = query.shape[2]
        table_of = self._indices(length, query.device)
        strides = (2 * length - 2, 1)
        terms = []
        if self.position_keys is not None:
            terms.append(_diagonals(_by_distance(query, self.position_keys, table_of.flip(0)), strides))
        if self.position_queries is not None:
            terms.append(_diagonals(_by_distance(key, self.position_queries, table_of), strides[::-1]))
        bias = terms[0] * self.scale
        for term in terms[1:]:
            bias.add_(term, alpha=self.scale)
        return bias

    def _indices(self, length: int, device: torch.device) -> Tensor:
        """Return the row of the tables for each distance -(L - 1) .. L - 1."""
        distances = torch.arange(1 - length, length, device=device)
        if self.buckets > 0 and self.longest > 0:
            distances = make_log_bucket_position(distances, self.buckets, self.longest).long()
        return (distances + self.span).clamp(0, 2 * self.span - 1)


def _by_distance(rows: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Return the products [B, heads, L, 2L - 1] of rows and the table's rows for each distance."""
    if len(index) <= _DIRECT * table.shape[1]:
        return rows @ table[:, index].transpose(-1, -2)
    by_bucket = rows @ table.transpose(-1, -2)
    return by_bucket.gather(-1, index.expand(*by_bucket.shape[:-1], -1))


def _diagonals(by_distance: Tensor, strides: tuple[int, int]) -> Tensor:
    """Return [B, heads, L, L], read from rows of distances so that one side of the matrix follows the diagonals."""
    batch, heads, length, _ = by_distance.shape
    return by_distance.as_strided(
        (batch, heads, length, length), (*by_distance.stride()[:2], *strides), by_distance.storage_offset() + length - 1
    )
