"""The model card: what the training started from."""

from __future__ import annotations

from typing import Any

import pytest

from wrpo_engine.training.export.model_card import CardFacts, model_card


@pytest.mark.parametrize(
    ("base", "line"),
    [
        ({"name": "org/model", "revision": "abc123"}, "- Started from: `org/model` (revision `abc123`)"),
        ({"name": "storage://models/target", "revision": None}, "- Started from: `storage://models/target`"),
    ],
)
def test_the_card_names_the_base_and_its_revision_if_it_has_one(base: dict[str, Any], line: str) -> None:
    card = model_card(
        CardFacts(
            title="SFT model",
            summary="A model.",
            experiment="default/one",
            base=base,
            engine_version="0",
            inputs={},
            params={},
            data={},
            sources={},
            metrics={},
            digests={},
        )
    )
    assert line in card.splitlines()
