"""A causal language model that answers with log-probabilities instead of logits."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wrpo_engine.errors import ConfigError
from wrpo_engine.training.logps import HeadScaling, selected_logps, sum_by_sequence

PREFIX = "causal_lm."
"""In front of the Hugging Face parameter names, since the model is wrapped."""


class LogpModel(nn.Module):
    """Wraps a Hugging Face causal LM; forward returns the summed response log-probability of every sequence.

    The chunked loss lives in the head's own forward: ZeRO-3 gathers a module's weight around its forward and backward,
    and so gathers the head once, not once per chunk.
    """

    def __init__(self, causal_lm: Any) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        head = causal_lm.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise ConfigError(
                "target.model",
                type(causal_lm).__name__,
                f"its output head is {type(head).__name__}, and training needs a linear one",
                "Use a decoder-only causal language model.",
            )
        scaling = HeadScaling.of_config(causal_lm.config)

        def forward(self: nn.Linear, hidden_RD: Tensor, targets_R: Tensor) -> Tensor:
            return selected_logps(hidden_RD, self.weight, targets_R, bias_V=self.bias, scaling=scaling)

        head.forward = types.MethodType(forward, head)  # type: ignore[method-assign]

    def forward(
        self,
        input_ids_ST: Tensor,
        positions_R: Tensor,
        targets_R: Tensor,
        sequence_of_token_R: Tensor,
        num_sequences: int,
    ) -> Tensor:
        # No attention mask: padding stands on the right, where causal attention never looks from a real token.
        hidden_STD = self.causal_lm.get_decoder()(input_ids=input_ids_ST, use_cache=False).last_hidden_state
        hidden_RD = hidden_STD.flatten(0, 1)[positions_R]
        logps_R = self.causal_lm.get_output_embeddings()(hidden_RD, targets_R)
        return sum_by_sequence(logps_R, sequence_of_token_R, num_sequences)


def disable_dropout(causal_lm: Any) -> None:
    """Switch all dropout off: policy and reference must agree at step 0, and resuming must be exact."""
    for module in causal_lm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "hidden_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def load_causal_lm(
    path: Path, *, precision: Literal["float32", "bfloat16"], gradient_checkpointing: bool, trust_remote_code: bool
) -> Any:
    """Load the model in the training precision, safetensors only."""
    from transformers import AutoModelForCausalLM

    try:
        causal_lm = AutoModelForCausalLM.from_pretrained(
            str(path), dtype=getattr(torch, precision), use_safetensors=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            "target.model",
            str(path),
            f"transformers cannot load it for training: {str(error).splitlines()[0]}",
            "Use a causal language model in safetensors format that this version of transformers knows.",
            code="ModelInvalid",
        ) from error
    disable_dropout(causal_lm)
    if gradient_checkpointing:
        causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    causal_lm.train()
    return causal_lm


def as_logp_model(causal_lm: Any) -> LogpModel:
    return LogpModel(causal_lm)
