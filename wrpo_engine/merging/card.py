"""Model card (README.md) of a merged model: method, parents, digests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from wrpo_engine import __version__


def merge_card(
    *,
    experiment: str,
    parameters: Mapping[str, Any],
    parents: Sequence[Mapping[str, Any]],
    digests: Mapping[str, str],
    searched: bool,
) -> str:
    """Return the card in Markdown with the metadata block for model hubs. `digests`: file of weights -> sha256."""
    method = parameters["method"]
    search = " Its weights were searched by CMA-ES, in the manner of arXiv 2410.13699." if searched else ""
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags:",
        "- merge",
        "- wrpo",
        "---",
        f"# {method} merge of {experiment}",
        "",
        f"The weights of {len(parents)} models, merged by {method}.{search}",
        "",
        f"- Experiment: `{experiment}`",
        f"- Engine: wrpo {__version__}",
        "",
        "## Parents",
        "",
        "| name | weight | digest |",
        "|---|---|---|",
        *(f"| {one['name']} | {one.get('weight', one['part'])} | {one['digest']} |" for one in parents),
        "",
        "## Parameters",
        "",
        "| name | value |",
        "|---|---|",
        *(f"| {name} | {json.dumps(value)} |" for name, value in parameters.items()),
        "",
        "## Weights",
        "",
        "| file | sha256 |",
        "|---|---|",
        *(f"| {name} | {digest} |" for name, digest in digests.items()),
        "",
    ]
    return "\n".join(lines)
