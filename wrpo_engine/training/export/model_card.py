"""Model card (README.md) of a trained model: origin, data, parameters, metrics and digests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """The content of a card."""

    title: str
    experiment: str
    summary: str
    base: Mapping[str, Any]
    """Name and revision (or digest) of the base model."""
    inputs: Mapping[str, str]
    """Role -> `stage/hash (sha256 of its manifest)`."""
    params: Mapping[str, Any]
    data: Mapping[str, Any]
    sources: Mapping[str, int]
    """Source model -> number of rows with its response as the source response."""
    metrics: Mapping[str, float]
    digests: Mapping[str, str]
    """File of weights -> sha256."""
    engine_version: str


def model_card(facts: CardFacts) -> str:
    """Return the card in Markdown with the metadata block for model hubs."""
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags:",
        "- wrpo",
        "- arxiv:2412.03187",
        "---",
        f"# {facts.title}",
        "",
        facts.summary,
        "",
        f"- Experiment: `{facts.experiment}`",
        f"- Started from: {_base(facts.base)}",
        f"- Engine: wrpo {facts.engine_version}",
        "",
        "## Inputs",
        "",
        *(f"- `{role}`: `{address}`" for role, address in sorted(facts.inputs.items())),
        "",
        "## Data",
        "",
        *_table(facts.data),
        "",
        *(["## Sources of the preferred responses", "", *_table(facts.sources), ""] if facts.sources else []),
        "## Hyper-parameters",
        "",
        *_table(facts.params),
        "",
        "## Metrics of the last step",
        "",
        *_table(facts.metrics),
        "",
        "## Weights",
        "",
        *_table(facts.digests, "file", "sha256"),
        "",
        "## Use",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("PATH")',
        'tokenizer = AutoTokenizer.from_pretrained("PATH")',
        "```",
        "",
    ]
    return "\n".join(lines)


def _base(base: Mapping[str, Any]) -> str:
    """Return what the training started from; models of a directory have no revision."""
    revision = base.get("revision")
    return f"`{base.get('name')}`" + ("" if revision is None else f" (revision `{revision}`)")


def _table(values: Mapping[str, Any], key: str = "name", value: str = "value") -> list[str]:
    rows = [f"| {name} | {entry if isinstance(entry, str) else json.dumps(entry)} |" for name, entry in values.items()]
    return [f"| {key} | {value} |", "|---|---|", *rows]
