"""Every causal language model of Transformers is computed exactly or refused before the first step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, SIZES, make_model
from test_engine_exact_attention import PARAMS, ROWS, TOLERANCE, layouts, plain_logps
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from wrpo_engine.errors import ConfigError
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.training.backends.single_process import SingleProcessBackend
from wrpo_engine.training.batch.collate import collate
from wrpo_engine.training.batch.layout import Layout
from wrpo_engine.training.models.policy import load_policy
from wrpo_engine.training.reference.self_check import require_plain_results

pytestmark = pytest.mark.slow
LARGEST = 20_000_000
"""Parameters: some architectures ignore sizes that they do not know."""
KNOWN = {name.split()[0]: name for name in ARCHITECTURES}
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"num_key_value_heads": 4},
    {"num_hidden_layers": 4},
    {"head_dim": 8},
    {"rotary_dim": 8},
    {"num_hidden_layers": 5, "num_key_value_heads": 4, "head_dim": 8},
)
"""Some have latent attention, some need a layer of each of several kinds."""
BIDIRECTIONAL = {"bert", "camembert", "electra", "ernie", "megatron-bert", "rembert", "roberta", "xlm", "xlm-roberta"}


def tiny_models(kind: str, directory: Path) -> Iterator[tuple[Path, Any, Tensor]]:
    """Yield the first tiny model that Transformers itself can make, store, load and run, and what it computes."""
    for number, variant in enumerate(VARIANTS):
        place = directory / str(number)
        try:
            config = AutoConfig.for_model(kind, **{**SIZES, **ARCHITECTURES.get(KNOWN.get(kind, kind), {}), **variant})
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
            if sum(parameter.numel() for parameter in model.parameters()) > LARGEST:
                continue
            made = make_model(AutoModelForCausalLM, KNOWN.get(kind, kind), **variant)
            made.save_pretrained(place)
            plain = plain_logps(place)
        except Exception:  # noqa: BLE001, S112 - whatever Transformers raises, of a size that it cannot be made in
            continue
        yield place, made.config, plain
        return


def outcome(base: ResolvedModel, layout: Layout, plain: Tensor) -> str:
    """Return what training does with a model."""
    try:
        model = load_policy(base, PARAMS, layout)
        require_plain_results(SingleProcessBackend(model, PARAMS), ROWS[0], layout, precision="float32", model="tiny")
    except ConfigError:
        return "refused"
    ours = model(batch=collate(ROWS, layout)).detach()
    difference = float(((ours.double() - plain.double()).abs() / (1 + plain.double().abs())).max())
    return "exact" if difference < TOLERANCE else f"differs by {difference:.2g} in layout {layout}"


@pytest.mark.filterwarnings("ignore")
def test_every_architecture_is_computed_exactly_or_refused_before_the_first_step(tmp_path: Path) -> None:
    outcomes: dict[str, str] = {}
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        for place, config, plain in tiny_models(kind, tmp_path / kind):
            found = {outcome(ResolvedModel(place, "tiny", None), layout, plain) for layout in layouts(config)}
            outcomes[kind] = ", ".join(sorted(found))
    print(*(f"{kind}: {what}" for kind, what in outcomes.items()), sep="\n")
    assert {kind: what for kind, what in outcomes.items() if what not in {"exact", "refused"}} == {}
    counts = Counter(outcomes.values())
    assert counts["exact"] >= 95, counts
    assert {kind for kind in BIDIRECTIONAL if outcomes[kind] == "refused"} == BIDIRECTIONAL
    assert {kind for kind in ("gpt_bigcode", "seed_oss") if outcomes[kind] == "exact"} == {"gpt_bigcode", "seed_oss"}
