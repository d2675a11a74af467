"""How many floating-point operations a model needs, from its weights and the lengths of the sequences alone.

Counted are matrix products: two operations per weight and token in the linear layers and the head, four per attention
head dimension and visible (query, key) pair. Norms, activations and softmax are below a percent of a language model's
operations and are left out, as everybody does. A backward pass costs twice its forward pass. Sliding windows are not
taken off.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from wrpo_engine.training.batch.rows import TokenRow

FORWARD_AND_BACKWARD = 3
"""Of a forward pass's operations: one for it, two for the gradients of inputs and weights."""
FORWARD_AND_INPUT_GRADIENTS = 2
"""Where only adapters are trained: the frozen weights have no gradients."""


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What of a model decides its operations."""

    body_weights: int
    """Weights of the linear layers that every token passes; of experts only the active share. Without the head."""
    head_weights: int
    """hidden * vocabulary."""
    attention_width: int
    """layers * heads * head dimension."""

    @classmethod
    def of(cls, causal_lm: Any) -> ModelCost:
        """Read a Hugging Face model; call it before anything cuts or gathers its weights."""
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
        """Return the operations of one forward pass over `tokens` with `pairs` of queries and keys that see each
        other, the head applied to `head_tokens` of them.
        """
        return 2 * self.body_weights * tokens + 4 * self.attention_width * pairs + 2 * self.head_weights * head_tokens


def _active_expert_share(config: Any) -> float:
    active = getattr(config, "num_experts_per_tok", None)
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((count for name in names if (count := getattr(config, name, None))), None)
    return active / experts if active and experts else 1.0


def causal_pairs(length: int) -> int:
    """Return the pairs of a sequence in which every token sees itself and those before it."""
    return length * (length + 1) // 2


def shared_prefix_pairs(prompt: int, responses: Sequence[int]) -> int:
    """Return the visible pairs where the prompt is computed once and every response sees it and itself."""
    return causal_pairs(prompt) + sum(response * prompt + causal_pairs(response) for response in responses)


def needed_forward(cost: ModelCost, row: TokenRow) -> int:
    """Return the fewest operations that give the log-probabilities of a row: the prompt once for all its responses, the
    head on tokens with loss only, no padding. Nobody asks what follows a response's last token.
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
    """Return the fewest operations of forward and backward over the rows, whatever layout computes them: no reference,
    nothing recomputed. What MFU is measured by, so that no layout looks better for wasting work.
    """
    return passes * sum(needed_forward(cost, row) for row in rows)
