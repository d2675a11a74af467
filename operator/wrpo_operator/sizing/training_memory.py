"""Memory of one rank of a training stage. All functions return bytes.

States are what DeepSpeed's ZeRO keeps of each parameter: the parameter, its accumulated gradient, the fp32 master
weight and two moments, 18 bytes by default (2 + 4 + 4 + 8). All
figures follow from the engine's settings; none is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_operator.sizing.memory import GIB, HALF, feed_forward_size, layer_activations
from wrpo_operator.sizing.requests import TrainingRequest

_WIDTHS = {"float32": 4, "bfloat16": 2, "8bit": 1}
_MASTER = 4
_CHECKPOINT = 12
"""Bytes of a trained parameter in a checkpoint: master weight and moments in fp32."""
_LIVE_PARAMETERS = 10**9
"""DeepSpeed's stage3_max_live_parameters."""
_BUCKET = 10**9
"""Elements of gradients that are reduced together, and of their copy."""
_CONTEXT = int(1.3 * GIB)
"""CUDA context, NCCL, workspaces."""
_LOGITS_OF_A_CHUNK = 2**28
_KEPT_SOFTMAX = 2**31
"""The engine computes logits in chunks of so many elements and keeps so many bytes of their softmax."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How a model is trained on ranks of one accelerator each."""

    per_pod: int
    pods: int
    tokens: int
    """Tokens of one forward pass of one rank."""
    checkpointing: bool
    offload: str

    @property
    def ranks(self) -> int:
        """Return the number of accelerators."""
        return self.per_pod * self.pods


def need(request: TrainingRequest, setup: Setup) -> float:
    """Return what one accelerator needs."""
    return (
        states(request, setup)
        + fixed(request)
        + activations(request.facts, setup.tokens, checkpointing=setup.checkpointing)
        + logits(request.facts, setup.tokens)
    )


def trained_parameters(request: TrainingRequest) -> int:
    """Return the parameters that the optimizer changes: all, or those of adapters."""
    if request.lora_rank is None:
        return request.facts.parameters
    facts = request.facts
    queries, pairs = facts.attention_heads * facts.head_size, facts.key_value_heads * facts.head_size
    sides = 2 * (facts.hidden_size + queries) + 2 * (facts.hidden_size + pairs)
    sides += 3 * (facts.hidden_size + feed_forward_size(facts))
    return request.lora_rank * sides * facts.layers


def zero_stage(request: TrainingRequest) -> int:
    """Return the ZeRO stage that runs: the engine replaces stage 0 by 1 in bfloat16."""
    return 1 if request.zero_stage == 0 and request.precision == "bfloat16" else request.zero_stage


def states(request: TrainingRequest, setup: Setup) -> float:
    """Return the states of one accelerator."""
    trained, ranks, stage = trained_parameters(request), setup.ranks, zero_stage(request)
    parameters = request.facts.parameters * _WIDTHS[request.precision] / (ranks if stage == 3 else 1)
    reference = parameters if request.reference == "in-memory" else 0
    if setup.offload == "optimizer-and-parameters":
        parameters = reference = 0
    gradients = trained * _WIDTHS[request.accumulation_dtype] / (ranks if stage >= 2 else 1)
    optimizer = trained * _optimizer_width(request) / (ranks if stage >= 1 else 1)
    return parameters + reference + gradients + (0 if setup.offload != "none" else optimizer)


def host_states(request: TrainingRequest, setup: Setup) -> float:
    """Return what all pods keep in host memory: offloaded states, and the copy that checkpoints are written from."""
    trained = trained_parameters(request)
    found = float(_CHECKPOINT * trained)
    if setup.offload != "none":
        found += trained * _optimizer_width(request)
    if setup.offload == "optimizer-and-parameters":
        found += request.facts.parameters * _WIDTHS[request.precision] * (1 + (request.reference == "in-memory"))
    return found


def fixed(request: TrainingRequest) -> float:
    """Return what no number of accelerators divides: gathered parameters, buckets, one embedding, the context."""
    facts, width = request.facts, _WIDTHS[request.precision]
    bucket = width * min(_BUCKET, trained_parameters(request))
    if zero_stage(request) < 3:
        return bucket + _CONTEXT
    return width * (min(_LIVE_PARAMETERS, facts.parameters) + facts.vocabulary * facts.hidden_size) + bucket + _CONTEXT


def activations(facts: ModelFacts, tokens: int, *, checkpointing: bool) -> float:
    """Return what the backward pass needs of the layers: all, or their inputs and one layer recomputed."""
    layer = layer_activations(facts)
    if not checkpointing:
        return float(tokens * layer * facts.layers)
    return float(tokens * (HALF * facts.hidden_size * facts.layers + layer))


def logits(facts: ModelFacts, tokens: int) -> float:
    """Return two chunks of logits in fp32, and the softmax that is kept for the backward pass."""
    chunk = min(tokens, max(128, _LOGITS_OF_A_CHUNK // facts.vocabulary))
    return 2 * 4 * chunk * facts.vocabulary + min(_KEPT_SOFTMAX, 4 * tokens * facts.vocabulary)


def _optimizer_width(request: TrainingRequest) -> int:
    return _MASTER + 2 * _WIDTHS[request.moments]
