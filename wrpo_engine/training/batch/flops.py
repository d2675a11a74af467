"""Floating-point operations of a model, from its weights and the lengths of the sequences.

The count includes matrix products only: two operations per weight and token in the linear layers and the head, and four
per attention head dimension and visible (query, key) pair. Norms, activations and softmax are below 1 % of a language
model's operations and are left out, as usual. A backward pass costs twice its forward pass. Sliding windows are not
deducted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from wrpo_engine.training.batch.rows import TokenRow

FORWARD_AND_BACKWARD = 3
"""In units of a forward pass: one for the forward pass, two for the gradients of inputs and weights."""
FORWARD_AND_INPUT_GRADIENTS = 2
"""In units of a forward pass, if only adapters are trained: the frozen weights have no gradients."""


@dataclass(frozen=True, slots=True)
class ModelCost:
    """The sizes of a model that determine its operations."""

    body_weights: int
    """Weights of the linear layers without the head; of experts only the active share."""
    head_weights: int
    """hidden * vocabulary."""
    attention_width: int
    """layers * heads * head dimension."""

    @classmethod
    def of(cls, causal_lm: Any) -> ModelCost:
        """Return the sizes of a Hugging Face model whose weights are not partitioned."""
        config = causal_lm.config.get_text_config()
        head = causal_lm.get_output_embeddings()
        expert_share = _active_expert_share(config)
        body = 0.0
        for name, module in causal_lm.named_modules():
            if module is head:
                continue
            share = expert_share if "experts" in name.split(".") else 1.0
            if isinstance(module, nn.Linear):
                body += share * module.weight.numel()
            else:
                body += sum(share * weight.numel() for weight in module.parameters(recurse=False) if weight.ndim == 3)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            body_weights=round(body),
            head_weights=head.weight.numel(),
            attention_width=config.num_hidden_layers * config.num_attention_heads * head_dim,
        )

    def forward(self, *, tokens: int, pairs: int, head_tokens: int) -> int:
        """Return the operations of one forward pass over `tokens`.

        `pairs` is the number of visible (query, key) pairs; the head is applied to `head_tokens` of the tokens.
        """
        return 2 * self.body_weights * tokens + 4 * self.attention_width * pairs + 2 * self.head_weights * head_tokens


def _active_expert_share(config: Any) -> float:
    active = getattr(config, "num_experts_per_tok", None)
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((count for name in names if (count := getattr(config, name, None))), None)
    return active / experts if active and experts else 1.0


def causal_pairs(length: int) -> int:
    """Return the visible pairs of a causal sequence: every token attends to itself and to all previous tokens."""
    return length * (length + 1) // 2


def shared_prefix_pairs(prompt: int, responses: Sequence[int]) -> int:
    """Return the visible pairs of a shared prompt: every response attends to the prompt and to itself."""
    return causal_pairs(prompt) + sum(response * prompt + causal_pairs(response) for response in responses)


def needed_forward(cost: ModelCost, row: TokenRow) -> int:
    """Return the fewest operations that compute the log-probabilities of a row.

    The prompt is computed once for all its responses, the head on tokens with loss only, and without padding. A
    response's last token predicts nothing and is left out.
    """
    branches = [len(response) - 1 for response in row.responses]
    with_loss = sum(len(response) for response in row.responses)
    if row.prompt_has_loss:
        with_loss += (len(row.prompt) - 1) * len(row.responses)
    return cost.forward(
        tokens=len(row.prompt) + sum(branches),
        pairs=shared_prefix_pairs(len(row.prompt), branches),
        head_tokens=with_loss,
    )


def needed_training_step(cost: ModelCost, rows: Iterable[TokenRow], *, passes: int = FORWARD_AND_BACKWARD) -> int:
    """Return the fewest operations of forward and backward over the rows, independent of the layout.

    Reference and recomputation are not included. MFU uses this number, so that no layout looks better because it wastes
    work.
    """
    return passes * sum(needed_forward(cost, row) for row in rows)
