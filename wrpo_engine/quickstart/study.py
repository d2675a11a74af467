"""Further models and prompts of the study: variants of SmolLM2-135M that differ in data and depth, and a merged one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wrpo_engine.quickstart import cards, models
from wrpo_engine.quickstart.corpus import Exchange, is_training
from wrpo_engine.quickstart.models import FinetuneRecipe, OnStep

FACTS = "models/smollm2-135m-facts"
SHALLOW = "models/smollm2-26-layers"
MERGED = "models/smollm2-135m-merged"
TARGET = "models/smollm2-12-layers"
PROMPTS = "datasets/study-prompts.jsonl"

FACTS_CATEGORIES = frozenset({"coding", "computers", "history", "literature", "money", "science", "sports", "trivia"})
"""Categories of the corpus about facts; the others are conversation."""
FACTS_RECIPE = FinetuneRecipe(learning_rate=1.5e-4)
SHALLOW_DROPPED = (5, 9, 14, 19)
SHALLOW_RECIPE = FinetuneRecipe(learning_rate=2e-4)
KEPT_LAYERS = (0, 1, 2, 4, 7, 10, 13, 17, 21, 25, 28, 29)
"""Layers of the target: few, so that a training takes a minute on two cores."""
TARGET_DROPPED = tuple(layer for layer in range(30) if layer not in KEPT_LAYERS)
TARGET_RECIPE = FinetuneRecipe(learning_rate=4e-4, epochs=2)
MERGED_SHARE = 0.5
"""Weight of the first parent."""
TOPIC_PROMPTS = 240
_TEMPLATES = ("What is {}?", "Describe {}.", "What do you think about {}?", "Why is {} important?")
_TOPIC = re.compile(r"\b[a-z]{6,}\b")


def about_facts(exchanges: Iterable[Exchange], *, facts: bool) -> list[Exchange]:
    """Return the exchanges whose category is about facts, or those of the other categories."""
    return [each for each in exchanges if (each.category in FACTS_CATEGORIES) is facts]


def make_facts(base: Path, exchanges: Sequence[Exchange], recipe: FinetuneRecipe, out: Path, on_step: OnStep) -> None:
    """Fine-tune the base model on the exchanges about facts only."""
    _Variant(()).make(base, about_facts(exchanges, facts=True), recipe, out, on_step)


def make_shallow(base: Path, exchanges: Sequence[Exchange], recipe: FinetuneRecipe, out: Path, on_step: OnStep) -> None:
    """Remove four layers from the base model and fine-tune the rest on conversation only."""
    _Variant(SHALLOW_DROPPED).make(base, about_facts(exchanges, facts=False), recipe, out, on_step)


def make_target(base: Path, exchanges: Sequence[Exchange], recipe: FinetuneRecipe, out: Path, on_step: OnStep) -> None:
    """Remove 18 of the 30 layers and fine-tune the rest on all exchanges."""
    _Variant(TARGET_DROPPED).make(base, exchanges, recipe, out, on_step)


def make_merged(first: Path, second: Path, out: Path) -> None:
    """Write the weighted mean of the weights of two models of one architecture, with the second's tokenizer."""
    from wrpo_engine.quickstart import smollm2

    other, _ = models.load_model(first)
    model, tokenizer = models.load_model(second)
    weights = other.state_dict()
    for name, value in model.state_dict().items():
        value.mul_(1 - MERGED_SHARE).add_(weights[name], alpha=MERGED_SHARE)
    smollm2.save(model, tokenizer, out)
    models.write_card(out, cards.MERGED.format(first=first.name, second=second.name, share=MERGED_SHARE))


def study_prompts(own: Iterable[Mapping[str, str]], questions: Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return the prompts of the study: `own`, then questions about words of `questions`.

    The split of the corpus applies to the questions too: prompts in the part for making models are left out.
    """
    words = dict.fromkeys(word for row in questions for word in _TOPIC.findall(row["prompt"]))
    asked = (_TEMPLATES[number % len(_TEMPLATES)].format(word) for number, word in enumerate(words))
    kept = [prompt for prompt in asked if not is_training(prompt)][:TOPIC_PROMPTS]
    return [*map(dict, own), *({"prompt": prompt, "category": "topic"} for prompt in kept)]


@dataclass(frozen=True, slots=True)
class _Variant:
    """The base model without some of its layers."""

    dropped: Sequence[int]

    def make(
        self, base: Path, exchanges: Sequence[Exchange], recipe: FinetuneRecipe, out: Path, on_step: OnStep
    ) -> None:
        """Remove the layers, fine-tune the rest on the exchanges, and write the model and its card."""
        from wrpo_engine.quickstart import smollm2

        model, tokenizer = models.load_model(base)
        smollm2.drop_layers(model, self.dropped)
        facts = models.finetune_on(model, tokenizer, exchanges, recipe, on_step)
        smollm2.save(model, tokenizer, out)
        categories = ", ".join(sorted({each.category for each in exchanges}))
        models.write_card(out, cards.STUDY.format(**facts, layers=30 - len(self.dropped), categories=categories))
