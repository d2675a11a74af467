"""Wrapper of a causal language model that returns log-probabilities instead of logits."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wrpo_engine.errors import ConfigError, first_line
from wrpo_engine.hub.models import ResolvedModel, transformers_config
from wrpo_engine.loading.exact_attention import load_arguments, use_exact_attention
from wrpo_engine.loading.weights import TRAIN, load_complete
from wrpo_engine.training.batch.collate import Batch
from wrpo_engine.training.batch.layout import Layout
from wrpo_engine.training.batch.soft import SoftTargets
from wrpo_engine.training.models import activation_recompute as lean
from wrpo_engine.training.models import attention
from wrpo_engine.training.models.logps import Head, HeadScaling, Targets, TokenLogps, sum_by_sequence, token_logps

PREFIX = "causal_lm."
"""Prefix of the Hugging Face parameter names in the wrapped model."""
_FIELD = "target.model"


class LogpModel(nn.Module):
    """Wraps a Hugging Face causal LM; forward returns the summed response log-probability of every sequence.

    The chunked loss is part of the head's own forward. ZeRO-3 gathers a module's weight around its forward and
    backward, so it gathers the head once, not once per chunk.
    """

    def __init__(
        self, causal_lm: Any, layout: Layout = Layout.PADDED, *, implementation: str = attention.IMPLEMENTATION
    ) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.layout = layout
        if layout is not Layout.PADDED:
            attention.register()
            causal_lm.set_attn_implementation(implementation)
        else:
            use_exact_attention(causal_lm)
        self.kept_activations = lean.install(causal_lm)
        """Description of the activations that layers keep for the backward pass."""
        head = causal_lm.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise ConfigError(
                "target.model",
                type(causal_lm).__name__,
                f"its output head is {type(head).__name__}, but training needs a linear one",
                "Use a decoder-only causal language model.",
            )
        if causal_lm.get_decoder() in {causal_lm, head}:
            raise ConfigError(
                "target.model",
                type(causal_lm).__name__,
                "Transformers does not identify its decoder below the output head",
                "Use a decoder-only causal language model.",
            )
        scaling = HeadScaling.of_config(causal_lm.config)
        self._is_plain = False

        def forward(
            self: nn.Linear, hidden_RD: Tensor, targets_R: Tensor, *, with_entropy: bool, soft: SoftTargets | None
        ) -> tuple[Tensor, Tensor, Tensor]:
            # A plain tuple, which DeepSpeed's hooks keep as it is.
            logps_R, entropies_R, labels_R = token_logps(
                hidden_RD, Head(self.weight, self.bias, scaling), Targets(targets_R, soft), with_entropy=with_entropy
            )
            return logps_R, entropies_R, labels_R

        head.forward = types.MethodType(forward, head)  # type: ignore[method-assign]

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Compute as plain Transformers does: its own forward methods, its reference attention, all logits at once."""
        head = self.causal_lm.get_output_embeddings()
        chunked, implementation = head.__dict__.pop("forward"), self.causal_lm.config._attn_implementation  # noqa: SLF001
        self.causal_lm.set_attn_implementation("eager")
        self._is_plain = True
        try:
            yield
        finally:
            self._is_plain = False
            self.causal_lm.set_attn_implementation(implementation)
            head.forward = chunked

    def _plain_logps(self, batch: Batch) -> Tensor:
        logits_RV = self.causal_lm(input_ids=batch.input_ids_LT, use_cache=False).logits.flatten(0, 1)
        logits_RV = logits_RV.index_select(0, batch.positions_R)
        wide = torch.promote_types(logits_RV.dtype, torch.float32)
        logps_R = torch.log_softmax(logits_RV.to(wide), dim=-1).gather(-1, batch.targets_R[:, None])[:, 0]
        return sum_by_sequence(logps_R, batch.sequence_of_token_R, batch.num_sequences)

    def forward(self, batch: Batch, *, with_entropy: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Return the summed log-probabilities of every sequence's tokens with loss, [S] in nats, fp32 or wider.

        With entropy, also return the sum of the entropies (nats) of the distributions from which those tokens are
        drawn, [S], detached. With soft targets the log-probabilities are [S, 2]: the means under the targets, then,
        detached, those of the tokens themselves. Raise ValueError for a batch of another layout.
        """
        if self._is_plain:
            return self._plain_logps(batch)
        hidden_RD = self.hidden(batch)
        head = self.causal_lm.get_output_embeddings()
        found = TokenLogps(*head(hidden_RD, batch.targets_R, with_entropy=with_entropy, soft=batch.soft))
        logps_S = sum_by_sequence(found.logps_R, batch.sequence_of_token_R, batch.num_sequences)
        if batch.soft is not None:
            labels_S = sum_by_sequence(found.labels_R, batch.sequence_of_token_R, batch.num_sequences)
            logps_S = torch.stack([logps_S, labels_S], dim=1)
        if not with_entropy:
            return logps_S
        return logps_S, sum_by_sequence(found.entropies_R, batch.sequence_of_token_R, batch.num_sequences)

    def hidden(self, batch: Batch) -> Tensor:
        """Return the decoder's states from which the head predicts the tokens with loss, [R, D].

        Raise ValueError for a batch of another layout.
        """
        if (batch.plan is None) is not (self.layout is Layout.PADDED):
            raise ValueError(f"a model of layout {self.layout} got a batch of another layout")
        # No attention mask is needed: padding is on the right, where causal attention from a real token never looks.
        # In the other layouts the plan defines the attention.
        arguments: dict[str, Any] = {"input_ids": batch.input_ids_LT, "use_cache": False}
        if batch.plan is not None:
            arguments |= {"position_ids": batch.plan.positions_T[None], "plan": batch.plan}
        hidden_LTD = self.causal_lm.get_decoder()(**arguments).last_hidden_state
        hidden_RD: Tensor = hidden_LTD.flatten(0, 1).index_select(0, batch.positions_R)
        head = self.causal_lm.get_output_embeddings()
        if hidden_RD.shape[-1] != head.in_features:
            raise ConfigError(
                _FIELD,
                type(self.causal_lm).__name__,
                f"its decoder returns {hidden_RD.shape[-1]} numbers per token and its output head takes "
                f"{head.in_features}, because there are further layers between them",
                "Use a decoder-only causal language model.",
            )
        return hidden_RD


def disable_dropout(causal_lm: Any) -> None:
    """Disable all dropout and noise: policy and reference must agree at step 0, and resuming must be exact.

    Layers store probabilities under many names: attention_dropout, attn_pdrop, layerdrop, router_jitter_noise.
    """
    for module in causal_lm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and any(part in name for part in ("drop", "jitter")):
                setattr(module, name, 0.0)


def load_config(path: Path, *, trust_remote_code: bool) -> Any:
    """Load the model's configuration without its weights."""
    return transformers_config(_trained(path, trust_remote_code=trust_remote_code))


def load_causal_lm(
    path: Path, *, precision: Literal["float32", "bfloat16"], gradient_checkpointing: bool, trust_remote_code: bool
) -> Any:
    """Load the model in the training precision from safetensors; raise ConfigError for weights missing in its files."""
    from transformers import AutoModelForCausalLM

    model = _trained(path, trust_remote_code=trust_remote_code)
    causal_lm = load_complete(
        model.directory,
        AutoModelForCausalLM,
        TRAIN,
        partial(_unknown, model),
        dtype=getattr(torch, precision),
        trust_remote_code=trust_remote_code,
        **load_arguments(transformers_config(model)),
    )
    disable_dropout(causal_lm)
    if gradient_checkpointing:
        causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    causal_lm.train()
    return causal_lm


def _trained(path: Path, *, trust_remote_code: bool) -> ResolvedModel:
    return ResolvedModel(path, str(path), None, trust_remote_code, field=_FIELD)


def _unknown(model: ResolvedModel, error: BaseException) -> ConfigError:
    return model.directory.invalid(
        f"transformers cannot load it for training: {first_line(error)}",
        "Use a causal language model in safetensors format that this version of transformers supports.",
    )
