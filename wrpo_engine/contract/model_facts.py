"""Facts about a model that decide how large its pods must be: counted from its config and its weight files' headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, gcd, lcm
from typing import Annotated, Any

from pydantic import Field, ValidationError

from wrpo_engine.contract.base import Declared
from wrpo_engine.contract.model_families import ALIASES, Family, Shape, count, family_of

MOST = 2**53
COMMIT_PATTERN = "^[0-9a-f]{40}$"
Count = Annotated[int, Field(ge=1, le=MOST)]


class ModelFacts(Declared):
    """Size and shape of a model. A stage that has read them puts them into its termination message."""

    model_type: Annotated[str, Field(min_length=1, max_length=64)]
    """`model_type` of config.json, e.g. llama."""
    parameters: Count
    """Number of parameters."""
    active_parameters: Count | None = None
    """Parameters that one token passes through. Unset: all, because the model is no mixture of experts."""
    weight_bytes: Count
    """Bytes of the weights as stored."""
    layers: Count
    """Transformer layers."""
    hidden_size: Count
    """Width of the residual stream."""
    attention_heads: Count
    """Query heads of a layer."""
    key_value_heads: Count
    """Key-value heads of a layer."""
    head_size: Count
    """Width of one key-value head."""
    latent_size: Count | None = None
    """Multi-head latent attention: values that a token caches per layer (kv_lora_rank + qk_rope_head_dim), which tensor
    parallelism does not divide. Unset: keys and values of all heads are cached."""
    feed_forward_size: Count | None = None
    """Width of the feed-forward network that a token passes through, its experts together. Unset: unknown."""
    splittable: Count | None = None
    """Greatest common divisor of what tensor parallelism divides besides heads: the widths of feed-forward networks and
    the padded vocabulary; of weights that are quantised in groups, the numbers of groups. Unset: unknown."""
    vocabulary: Count
    """Rows of the embedding."""
    context: Count
    """Longest sequence in tokens that the model supports."""
    dtype: Annotated[str, Field(min_length=1, max_length=32)] = "bfloat16"
    """Number format of the weights."""
    quantization: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Quantisation method of the stored weights, e.g. fp8. Unset: none."""
    needs_code: bool = False
    """Whether the checkpoint needs its own Python code (trust_remote_code)."""
    revision: Annotated[str, Field(pattern=COMMIT_PATTERN)] | None = None
    """Commit of the hub that was read, to pin the model with. Unset: not from a hub."""


def with_commit(facts: ModelFacts, revision: str | None) -> ModelFacts:
    """Return facts with the commit that they were read from, if a revision is one."""
    is_commit = revision is not None and re.fullmatch(COMMIT_PATTERN, revision)
    return facts.model_copy(update={"revision": revision}) if is_commit else facts


class FactsError(ValueError):
    """A config.json that does not describe a model that stages can run. Names the field, its value and the remedy."""


_WIDTHS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}
"""Bytes of a value by number format."""
_QUANTIZED_BYTES = {4: 0.55, 8: 1.0}
"""Bytes of a quantised parameter by bits, scales included. The embedding and the output keep the config's dtype."""
_FOUR_BITS = ("awq", "gptq", "mxfp4", "bitsandbytes_4bit")
_VOCABULARY_MULTIPLE = 64
"""vLLM pads the vocabulary to a multiple of this."""
_FEWEST_BYTES, _MOST_BYTES = 0.9, 8.2
"""Possible bytes of a stored value: 1 to 8, and some tolerance because configs do not describe every tensor."""
_REMEDY = "Name a model whose config.json is complete, or set the stage's accelerators."
_LONGEST = 80
"""Characters of a value in a message."""
_SECTIONS = ("text_config", "language_config", "llm_config")
"""Parts about the language model in configs of models that read images or sound too."""
_TOWER = re.compile("vision|visual|image|audio|speech|sound|vit_config|tower")
"""Names of the parts about images or sound."""


def facts_of(
    config: Mapping[str, Any], *, weight_bytes: int | None, stored_parameters: int | None = None
) -> ModelFacts:
    """Return the facts about a model.

    `config` is its parsed config.json. `weight_bytes` is the total of its safetensors files by their index or headers;
    None: parameters times the bytes of the config's dtype. `stored_parameters` is the number of values in these files;
    None: counted from the config. Raises FactsError if the config lacks a needed field or contradicts the weights.
    """
    text = _language_model(config)
    model_type = _type_of(text)
    family = family_of(model_type)
    fields = Fields(text, family.defaults)
    shape = shape_of(fields, family)
    counts = count(family, shape)
    dtype = str(text.get("dtype") or text.get("torch_dtype") or "float32").removeprefix("torch.")
    scheme = _quantization(config, text)
    quantization = None if scheme is None else scheme.method
    has_more = _has_more(config)
    if weight_bytes is not None and family.known and quantization is None:
        _check_bytes(weight_bytes, counts.total, upper=not has_more)
    if quantization is None and stored_parameters is not None:
        parameters = stored_parameters
    elif weight_bytes is not None and quantization is None and (has_more or not family.known):
        parameters = max(1, weight_bytes // _WIDTHS.get(dtype, 2))
    else:
        parameters = counts.total
    latent = shape.latent_rank + shape.rope_size if shape.latent_rank else None
    try:
        return ModelFacts(
            model_type=model_type,
            parameters=parameters,
            active_parameters=min(counts.active, parameters) if shape.experts else None,
            weight_bytes=_bytes(shape, parameters, _WIDTHS.get(dtype, 2), scheme)
            if weight_bytes is None
            else weight_bytes,
            layers=shape.layers,
            hidden_size=shape.hidden,
            attention_heads=shape.heads,
            key_value_heads=shape.key_value_heads,
            head_size=shape.head_size,
            latent_size=latent,
            feed_forward_size=shape.chosen_experts * shape.expert_width + shape.shared_width or shape.feed_forward,
            splittable=_splittable(shape, 1 if scheme is None else scheme.group),
            vocabulary=shape.vocabulary,
            context=shape.context,
            dtype=dtype,
            quantization=quantization,
            needs_code="auto_map" in config and not family.native,
        )
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise FactsError(f"{fault['loc'][0]} is {_shown(fault['input'])}: {fault['msg']}. {_REMEDY}") from error


def _shown(value: object) -> str:
    """Return a value as text of a message, without the rest of a long one."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _language_model(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a config about the language model, which has the whole config's values where it has none."""
    for name in _SECTIONS:
        section = config.get(name)
        if isinstance(section, Mapping):
            outer = {key: config[key] for key in ("dtype", "torch_dtype", "architectures") if key in config}
            inherited = {"model_type": config.get("model_type"), "tie_word_embeddings": None}
            return {**inherited, **outer, **section}
    return config


def _has_more(config: Mapping[str, Any]) -> bool:
    """Return whether the weights have parts besides the language model: towers that read images or sound."""
    return any(_TOWER.search(name) and isinstance(config[name], Mapping) for name in config)


def _type_of(text: Mapping[str, Any]) -> str:
    found = text.get("model_type")
    if not isinstance(found, str) or not found:
        raise FactsError(
            f"config.json: model_type is {_shown(found)}; it must name the model's architecture. {_REMEDY}"
        )
    return found


@dataclass(frozen=True, slots=True)
class _Scheme:
    """How weights are quantised."""

    method: str
    bytes_each: float
    """Bytes of a quantised parameter."""
    group: int
    """Neighbouring values with one scale, which tensor parallelism cannot divide. 1: values are independent."""


def _quantization(config: Mapping[str, Any], text: Mapping[str, Any]) -> _Scheme | None:
    """Return how the weights are quantised; None for weights as trained."""
    section = config.get("quantization_config") or text.get("quantization_config")
    if section is None:
        return None
    if not isinstance(section, Mapping):
        raise FactsError(f"config.json: quantization_config is {_shown(section)}; it must be an object. {_REMEDY}")
    method = str(section.get("quant_method") or "unknown")
    weights = _compressed_weights(section)
    bits = section.get("bits", weights.get("num_bits"))
    is_known = isinstance(bits, int) and not isinstance(bits, bool) and bits > 0
    four = bits <= 4 if is_known else section.get("load_in_4bit") is True or method in _FOUR_BITS
    blocks = section.get("weight_block_size") or weights.get("block_structure")
    sizes = blocks if isinstance(blocks, list) else [section.get("group_size", weights.get("group_size"))]
    return _Scheme(method, _QUANTIZED_BYTES[4 if four else 8], lcm(*(size for size in sizes if _is_size(size))))


def _compressed_weights(section: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what compressed-tensors says about the weights of the first group of layers; empty for other methods."""
    groups = section.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    return weights if isinstance(weights, Mapping) else {}


def _is_size(value: object) -> bool:
    """Return whether a value is a size of groups; -1 and null mean one group for a whole row."""
    return isinstance(value, int) and 1 < value <= MOST


def _bytes(shape: Shape, parameters: int, width: int, scheme: _Scheme | None) -> int:
    """Return the bytes of weights whose files are not known."""
    if scheme is None:
        return parameters * width
    ends = shape.vocabulary * shape.hidden * (1 if shape.tied or shape.labels else 2)
    kept = min(ends, parameters)
    return ceil((parameters - kept) * scheme.bytes_each) + kept * width


def _check_bytes(weight_bytes: int, parameters: int, *, upper: bool) -> None:
    """Raise FactsError unless so many bytes can hold so many parameters."""
    per_parameter = weight_bytes / parameters
    if per_parameter < _FEWEST_BYTES or (upper and per_parameter > _MOST_BYTES):
        raise FactsError(
            f"The weight files have {weight_bytes} bytes by their index or headers, but config.json describes "
            f"{parameters} parameters, {per_parameter:.3g} bytes each; 1 to 8 are possible. Upload the index and the "
            f"config that belong to the weights, or set the stage's accelerators."
        )


def _splittable(shape: Shape, group: int) -> int:
    """Return the divisor of the padded vocabulary and of the groups of all layers whose inputs are divided."""
    padded = -(-shape.vocabulary // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
    dense = shape.feed_forward if not shape.experts or shape.dense_layers else 0
    widths = [dense, shape.expert_width, shape.shared_width]
    if group > 1:
        # Heads are divided evenly anyhow; their values need not be.
        widths += [shape.heads * (shape.value_size if shape.latent_rank else shape.head_size)]
        widths += [shape.heads * (shape.nope_size + shape.rope_size)] if shape.latent_rank else []
    return gcd(padded, *(1 if width % group else width // group for width in widths))


class Fields:
    """Numbers of a config under unified names, with errors that name the field."""

    def __init__(self, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.values = config
        self._defaults = defaults

    def get(self, name: str, default: int = 0) -> int:
        """Return a field that a model may lack."""
        for alias in (name, *ALIASES.get(name, ())):
            value = self.values.get(alias)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MOST:
                raise FactsError(
                    f"config.json: {alias} is {_shown(value)}; it must be a whole number from 0 to {MOST - 1}. "
                    f"{_REMEDY}"
                )
            return value
        return int(self._defaults.get(name, default))

    def need(self, name: str) -> int:
        """Return a field that every model has."""
        found = self.get(name)
        if found < 1:
            others = ALIASES.get(name, ())
            names = f" (nor {', '.join(others)})" if others else ""
            stated = f"{name} is 0" if name in self.values and self.values[name] == 0 else f"there is no {name}{names}"
            raise FactsError(
                f"config.json of model_type {_shown(self.values.get('model_type'))}: {stated}, which is needed to "
                f"size the model. {_REMEDY}"
            )
        return found

    def items(self, name: str) -> list[Any]:
        """Return a list that a model may lack."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, list):
            raise FactsError(f"config.json: {name} is {_shown(value)}; it must be a list. {_REMEDY}")
        return value or []

    def flag(self, name: str, *, default: bool) -> bool:
        """Return a switch."""
        value = self.values.get(name, self._defaults.get(name))
        return default if value is None else bool(value)


def shape_of(fields: Fields, family: Family) -> Shape:
    """Return a config's shape; FactsError for what is missing or contradictory."""
    hidden, heads = fields.need("hidden_size"), fields.need("num_attention_heads")
    key_value_heads = fields.get("num_key_value_heads") or (1 if fields.flag("multi_query", default=False) else heads)
    if heads % key_value_heads and not fields.get("kv_lora_rank"):
        raise FactsError(
            f"config.json: num_attention_heads is {heads} and num_key_value_heads is {key_value_heads}; it must "
            f"be a multiple. {_REMEDY}"
        )
    head_size = fields.get("head_dim") or hidden // heads
    if not head_size:
        raise FactsError(f"config.json: hidden_size is {hidden}, below num_attention_heads ({heads}). {_REMEDY}")
    return Shape(
        layers=fields.need("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        key_value_heads=key_value_heads,
        head_size=head_size,
        feed_forward=fields.get("intermediate_size") or 4 * hidden,
        vocabulary=fields.need("vocab_size"),
        context=fields.need("max_position_embeddings"),
        **_experts(fields),
        latent_rank=fields.get("kv_lora_rank"),
        query_rank=fields.get("q_lora_rank"),
        rope_size=fields.get("qk_rope_head_dim"),
        nope_size=fields.get("qk_nope_head_dim"),
        value_size=fields.get("v_head_dim"),
        tied=fields.flag("tie_word_embeddings", default=family.tied),
        labels=_labels(fields),
        attention_bias=fields.flag("attention_bias", default=False),
        feed_forward_bias=fields.flag("mlp_bias", default=False),
        **_embeddings(fields, family),
    )


def _embeddings(fields: Fields, family: Family) -> dict[str, Any]:
    """Return the embeddings besides those of tokens."""
    found: dict[str, Any] = {"token_types": fields.get("type_vocab_size") if family.encoder else 0}
    context = fields.need("max_position_embeddings")
    if family.positions or fields.flag("position_biased_input", default=False):
        found["positions"] = context + family.more_positions
    if fields.flag("relative_attention", default=False):
        buckets = fields.values.get("position_buckets")
        found["relative_positions"] = 2 * (buckets if isinstance(buckets, int) and buckets > 0 else context)
        found["relative_norm"] = "layer_norm" in str(fields.values.get("norm_rel_ebd"))
    return found


def _experts(fields: Fields) -> dict[str, Any]:
    experts = fields.get("num_experts")
    if not experts:
        return {}
    width = fields.get("moe_intermediate_size") or fields.need("intermediate_size")
    step = max(1, fields.get("decoder_sparse_step", fields.get("moe_layer_freq", 1)))
    layers, first = fields.need("num_hidden_layers"), fields.get("first_k_dense_replace")
    dense = fields.items("mlp_only_layers")
    sparse = sum(1 for layer in range(first, layers) if layer not in dense and (layer + (step > 1)) % step == 0)
    shared_alone = fields.get("shared_expert_intermediate_size")
    return {
        "experts": experts,
        "chosen_experts": min(experts, fields.need("num_experts_per_tok")),
        "expert_width": width,
        "shared_width": shared_alone or fields.get("n_shared_experts") * width,
        "shared_gate": bool(shared_alone),
        "dense_layers": layers - sparse,
    }


def _labels(fields: Fields) -> int:
    """Return the outputs of a classifier or reward model, 0 for a language model."""
    architecture = str(next(iter(fields.items("architectures")), "ForCausalLM"))
    if "SequenceClassification" not in architecture and "Reward" not in architecture:
        return 0
    names = fields.values.get("id2label")
    return len(names) if isinstance(names, Mapping) and names else fields.get("num_labels", 2)
