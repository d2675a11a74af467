"""Check before loading that a checkpoint's files hold exactly the model that its configuration describes.

Transformers itself decides, so that its renamings, its tied weights and what it ignores count: it loads the tensors'
headers, as tensors without content, into a model without content. Nothing but headers is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from wrpo_engine.errors import ConfigError, first_line
from wrpo_engine.loading.files import CONFIG_FILE, ModelDirectory, TensorFact, shown
from wrpo_engine.loading.files import is_quantised as is_quantised  # noqa: PLC0414 (imported from here)
from wrpo_engine.loading.guard import loading

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_MOST_LAYERS = 1000
"""A model of more layers than this and than it has tensors is not built to see that it does not match."""
_COMPUTED = re.compile(r"(^|\.)(position_ids|rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias)$")
"""Buffers that older versions saved and that every model computes by itself."""
_EXPERT = re.compile(r"(.*\.experts\.)(\d+)\.(.*)")
_DTYPES = {"BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32}


@dataclass(frozen=True, slots=True)
class Purpose:
    """What the weights are loaded for, in an error's words."""

    made: str
    """Part of the model that would be random if weights were missing, for example `its scores`."""
    code: str = "WeightsMissing"
    hint: str = "Copy or save all weights of the model; see what its config.json describes."
    unused: re.Pattern[str] | None = None
    """Further tensors that are of no use for it, for example heads of other tasks."""


SAMPLE = Purpose("its answers")
TRAIN = Purpose("they")
SCORE = Purpose(
    "its scores",
    code="RewardModelInvalid",
    hint="Use a trained reward model; a base or chat model is not one.",
    unused=re.compile(r"^(lm_head|cls|lm_predictions|mask_predictions|qa_outputs)\."),
)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep Transformers' own report and progress bars out of the log; the errors here replace them."""
    from transformers.utils import logging

    level, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bar:
            logging.enable_progress_bar()


def check_weights(
    directory: ModelDirectory, facts: Mapping[str, TensorFact], config: Any, kind: Any, purpose: Purpose
) -> None:
    """Raise ConfigError naming the tensors that the model lacks, has no place for, or has in another shape.

    `config` is Transformers' configuration of the model, `kind` its model class or an Auto class. Quantised models and
    models with custom code are left to the loader: their tensors are not those of the model without weights.
    """
    if is_quantised(config.to_dict()) or type(config).__module__.startswith("transformers_modules"):
        return
    _check_layers(directory, facts, config)
    if missing := _missing_of_experts(facts):
        raise _lacks(directory, missing, purpose)

    def refuse(error: BaseException) -> ConfigError:
        return directory.invalid(
            f"{CONFIG_FILE} and its files describe no model that can be loaded: {first_line(error)}",
            "Correct config.json, or copy or download the model again.",
            code=purpose.code if purpose is SCORE else "ModelInvalid",
        )

    with loading(refuse), quiet_loading():
        found = _load_headers(facts, config, kind)
    require_complete(directory, found, purpose)


def _load_headers(facts: Mapping[str, TensorFact], config: Any, kind: Any) -> Mapping[str, Any]:
    with torch.device("meta"):
        model_class = type(kind.from_config(config)) if hasattr(kind, "from_config") else kind
    tensors = {
        name: torch.empty(fact.shape, dtype=_DTYPES.get(fact.dtype, torch.float32), device="meta")
        for name, fact in facts.items()
    }
    _, found = model_class.from_pretrained(
        None,
        config=config,
        state_dict=tensors,
        device_map={"": "meta"},
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    loaded: Mapping[str, Any] = found
    return loaded


def load_complete(
    directory: ModelDirectory,
    kind: Any,
    purpose: Purpose,
    refuse: Callable[[BaseException], ConfigError],
    **options: Any,
) -> Any:
    """Load a model from safetensors with Transformers; ConfigError unless its files hold exactly its weights."""
    with loading(refuse):
        loaded, found = kind.from_pretrained(
            str(directory.path), use_safetensors=True, output_loading_info=True, **options
        )
    require_complete(directory, found, purpose)
    return loaded


def require_complete(directory: ModelDirectory, found: Mapping[str, Any], purpose: Purpose) -> None:
    """Raise ConfigError unless Transformers' loading report is clean."""
    if missing := sorted(found["missing_keys"]):
        raise _lacks(directory, missing, purpose)
    if mismatched := sorted(found["mismatched_keys"]):
        faults = [
            f"{name} is {list(found)} in the files and {list(made)} by config.json" for name, found, made in mismatched
        ]
        raise directory.invalid(
            f"its files hold weights of other shapes than config.json describes: {shown(faults)}",
            "Copy or save config.json and weights of one model.",
            code=purpose.code,
        )
    unexpected = [name for name in sorted(found["unexpected_keys"]) if not _is_of_no_use(name, purpose)]
    if unexpected:
        raise directory.invalid(
            f"its files hold weights that the model of its config.json has no place for: {shown(unexpected)}",
            "Correct config.json (for example the number of layers), or remove these tensors.",
            code=purpose.code,
        )


def _lacks(directory: ModelDirectory, missing: Sequence[str], purpose: Purpose) -> ConfigError:
    return directory.invalid(
        f"its files hold no weights for {shown(missing)}, so {purpose.made} would be random",
        purpose.hint,
        code=purpose.code,
    )


def _missing_of_experts(names: Iterable[str]) -> list[str]:
    """Return the tensors that an expert lacks and another one of its layer has.

    Transformers joins the experts' tensors as it loads them, and where one is missing it does not say which.
    """
    layers: dict[str, dict[str, set[str]]] = {}
    for name in names:
        if match := _EXPERT.fullmatch(name):
            layer, expert, part = match.groups()
            layers.setdefault(layer, {}).setdefault(expert, set()).add(part)
    return sorted(
        f"{layer}{expert}.{part}"
        for layer, experts in layers.items()
        for expert, parts in experts.items()
        for part in set.union(*experts.values()) - parts
    )


def _is_of_no_use(name: str, purpose: Purpose) -> bool:
    return bool(_COMPUTED.search(name)) or (purpose.unused is not None and bool(purpose.unused.search(name)))


def _check_layers(directory: ModelDirectory, facts: Mapping[str, TensorFact], config: Any) -> None:
    text = config.get_text_config()
    for name in _LAYERS:
        layers = getattr(text, name, None)
        if isinstance(layers, int) and layers > max(_MOST_LAYERS, len(facts)):
            raise directory.invalid(
                f"{CONFIG_FILE} has {name} {layers}, but its files hold {len(facts)} tensors",
                "Copy or save config.json and weights of one model.",
            )
