"""Layers that keep less: the same values and gradients as the original modules, with fewer bytes saved."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from layout_support import ROWS, make_causal_lm
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from wrpo_engine.training.batch.collate import collate
from wrpo_engine.training.batch.layout import Layout
from wrpo_engine.training.models import activation_recompute as lean
from wrpo_engine.training.models.model import LogpModel

ARCHITECTURES = (
    "granite with its scalings",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
)
LEAN = "inputs of norms and activations, their results made anew"


def original_and_lean(architecture: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return one model twice, in Transformers' form and keeping less; norms' weights and biases are not all alike."""
    original = make_causal_lm(architecture, dtype=dtype)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in original.parameters():
            if parameter.ndim == 1:
                noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(noise.to(parameter.dtype) - 0.5)
    ours = copy.deepcopy(original)
    assert lean.install(ours) == LEAN
    return original, ours


def hidden_and_gradients(causal_lm: Any) -> tuple[Tensor, dict[str, Tensor]]:
    ids = torch.arange(3, 25).view(2, 11)
    hidden = causal_lm.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    generator = torch.Generator().manual_seed(2)
    upstream = torch.randn(hidden.shape, generator=generator, dtype=torch.float64).to(hidden.dtype)
    (hidden * upstream).sum().backward()
    return hidden.detach(), {name: p.grad for name, p in causal_lm.named_parameters() if p.grad is not None}


def assert_close_in_norm(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, their in theirs.items():
        difference = torch.linalg.vector_norm(ours[name].double() - their.double())
        assert float(difference) <= tolerance * float(torch.linalg.vector_norm(their.double())), name


TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 0.05}
"""In float64, too, norms are computed in fp32."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_values_are_the_originals_bit_by_bit_and_gradients_within_rounding(
    architecture: str, dtype: torch.dtype
) -> None:
    original, ours = original_and_lean(architecture, dtype)
    our_hidden, our_gradients = hidden_and_gradients(ours)
    their_hidden, their_gradients = hidden_and_gradients(original)
    assert torch.equal(our_hidden, their_hidden)
    assert_close_in_norm(our_gradients, their_gradients, TOLERANCES[dtype])


def test_every_architecture_that_keeps_less_is_tested_here() -> None:
    assert {architecture.split(maxsplit=1)[0] for architecture in ARCHITECTURES} == lean.LEAN_ARCHITECTURES


class Made(TorchDispatchMode):
    """Counts the bytes of what was made in its time and lives on."""

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._storages[StorageWeakRef(storage)] = storage.nbytes()
        return result

    @property
    def bytes_held(self) -> int:
        return sum(size for storage, size in self._storages.items() if not storage.expired())


def bytes_held(causal_lm: Any, layout: Layout = Layout.SHARED_PREFIX) -> int:
    """Return what a forward pass leaves for the backward pass, apart from the weights."""
    model = LogpModel(causal_lm, layout)
    batch = collate([ROWS[2]] * 8, layout)
    with Made() as made:
        logps = model(batch=batch)
    held = made.bytes_held
    assert logps.requires_grad
    return held


def test_less_is_kept_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Floats of a token and layer: 2 x 32 inputs of norms, 32 + 16 + 16 + 32 of attention, 2 x 48 of the feed-forward.

    Transformers keeps four more of 32 and two more of 48 in addition to these 256.
    """
    ours = bytes_held(make_causal_lm(dtype=torch.float32))
    monkeypatch.setattr(lean, "LEAN_ARCHITECTURES", frozenset())
    theirs = bytes_held(make_causal_lm(dtype=torch.float32))
    tokens = collate([ROWS[2]] * 8, Layout.SHARED_PREFIX).input_ids_LT.numel()
    assert theirs - ours > 0.95 * 2 * tokens * (4 * 32 + 2 * 48) * 4


def test_checkpointed_layers_keep_no_more_than_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def checkpointed() -> Any:
        causal_lm = make_causal_lm(dtype=torch.float32)
        causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return causal_lm

    ours = bytes_held(checkpointed())
    monkeypatch.setattr(lean, "LEAN_ARCHITECTURES", frozenset())
    assert ours <= bytes_held(checkpointed())


@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], "all-linear"])
def test_adapters_have_the_gradients_they_have_in_the_original(targets: list[str] | str) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    original = make_causal_lm(dtype=torch.float32)
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    inject_adapter_in_model(config, original)
    ours = copy.deepcopy(original)
    assert lean.install(ours) == LEAN
    our_hidden, our_gradients = hidden_and_gradients(ours)
    their_hidden, their_gradients = hidden_and_gradients(original)
    assert torch.equal(our_hidden, their_hidden)
    assert all("lora_" in name for name in our_gradients)
    assert_close_in_norm(our_gradients, their_gradients, 1e-5)


def test_a_copy_of_a_model_computes_with_its_own_weights() -> None:
    _, ours = original_and_lean("llama", torch.float32)
    other = copy.deepcopy(ours)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    expected = copy.deepcopy(other)
    for module in expected.modules():
        module.__dict__.pop("forward", None)
    their_hidden, theirs = hidden_and_gradients(expected)
    our_hidden, gradients = hidden_and_gradients(other)
    assert torch.equal(our_hidden, their_hidden)
    assert_close_in_norm(gradients, theirs, 1e-5)
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_weights_that_move_between_the_passes_are_read_where_they_lie_then() -> None:
    """As ZeRO-3 does: a parameter's memory is given back after the forward pass and filled again for the backward."""
    original, ours = original_and_lean("llama", torch.float32)
    ids = torch.arange(3, 25).view(2, 11)
    projections = [module.weight for module in ours.get_decoder().layers.modules() if isinstance(module, nn.Linear)]
    result = ours.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    places = [StorageWeakRef(weight.untyped_storage()) for weight in projections]
    values = [weight.detach().clone() for weight in projections]
    for weight in projections:
        weight.data = torch.empty(0)
    held = [place for place in places if not place.expired()]
    for weight, value in zip(projections, values, strict=True):
        weight.data = value
    result.square().sum().backward()
    original.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state.square().sum().backward()
    assert_close_in_norm(
        {name: p.grad for name, p in ours.named_parameters() if p.grad is not None},
        {name: p.grad for name, p in original.named_parameters() if p.grad is not None},
        1e-5,
    )
    # Attention's output projection alone is called without a hook, and its view is autograd's own.
    assert len(held) == len(ours.get_decoder().layers)


def _replaced(causal_lm: Any) -> None:
    norm = causal_lm.get_decoder().layers[0].input_layernorm
    norm.forward = norm.forward


def _gelu(causal_lm: Any) -> None:
    causal_lm.get_decoder().layers[0].mlp.act_fn = nn.GELU()


def _checkpointed(causal_lm: Any) -> None:
    causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


UNUSUAL: dict[str, tuple[str, Callable[[Any], None]]] = {
    "as Transformers has it (architecture gemma is not among those known)": ("gemma", lambda _: None),
    "as Transformers has it (something else has replaced a module's forward method)": ("llama", _replaced),
    "as Transformers has it (the feed-forward's activation is not SiLU)": ("llama", _gelu),
    "each layer's input (gradient checkpointing)": ("llama", _checkpointed),
}


@pytest.mark.parametrize("expected", UNUSUAL)
def test_what_layers_keep_is_told(expected: str) -> None:
    architecture, change = UNUSUAL[expected]
    causal_lm = make_causal_lm(architecture)
    change(causal_lm)
    assert LogpModel(causal_lm).kept_activations == expected
