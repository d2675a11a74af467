"""The conversations behind the quickstart: read from installed packages, split so that nothing leaks.

There is one split, by a prompt's own text. The quickstart's models (second source, target, reward) are made from the
`training` part. The experiment sees only the `experiment` part. No prompt of the experiment, held-out prompts
included, was seen by a derived model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TRAINING_PERCENT = 60
"""Share of the prompts from which the quickstart's models are made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A prompt and the first response to it."""

    prompt: str
    response: str
    category: str


def normalise(prompt: str) -> str:
    """Return what two spellings of one prompt have in common: lower case words, no punctuation.

    A prompt without any word keeps its text, so that it does not fall together with every other such prompt.
    """
    return " ".join(re.findall(r"\w+", prompt.lower())) or prompt


def bucket(prompt: str) -> int:
    """Return a number 0..99 that depends on the words of the prompt alone."""
    return int.from_bytes(hashlib.sha256(normalise(prompt).encode()).digest()[:8]) % 100


def is_training(prompt: str) -> bool:
    """Return the part of a prompt: True for making models, False for the experiment."""
    return bucket(prompt) < TRAINING_PERCENT


def exchanges_of(document: Mapping[str, Any], category: str) -> Iterator[Exchange]:
    """Yield the first exchange of each conversation of a corpus file; those without a response are skipped."""
    for conversation in document["conversations"]:
        turns = [str(turn).strip() for turn in conversation]
        if len(turns) >= 2 and turns[0] and turns[1]:
            yield Exchange(prompt=turns[0], response=turns[1], category=category)


def read_exchanges(directory: Path) -> list[Exchange]:
    """Read every English file of chatterbot-corpus in a fixed order."""
    found: list[Exchange] = []
    for path in sorted(directory.glob("*.yml")):
        with path.open(encoding="utf-8") as stream:
            found.extend(exchanges_of(yaml.safe_load(stream), path.stem))
    return found


def training_exchanges(exchanges: Iterable[Exchange], *, max_characters: int) -> list[Exchange]:
    """Keep the training part's distinct exchanges with responses of at most `max_characters`, in a mixed order."""
    distinct = {(normalise(each.prompt), each.response): each for each in exchanges}
    chosen = [each for each in distinct.values() if is_training(each.prompt) and len(each.response) <= max_characters]
    return sorted(chosen, key=lambda each: _order(each.prompt + "\n" + each.response))


def experiment_prompts(exchanges: Iterable[Exchange], *, per_category: int) -> list[dict[str, str]]:
    """Return the experiment part's distinct prompts as rows, at most `per_category` of a category, in a mixed order.

    The cap keeps the largest category (half of the corpus) from becoming the whole experiment.
    """
    first: dict[str, Exchange] = {}
    for each in exchanges:
        if not is_training(each.prompt):
            first.setdefault(normalise(each.prompt), each)
    counts: dict[str, int] = {}
    rows = []
    for each in sorted(first.values(), key=lambda exchange: _order(exchange.prompt)):
        counts[each.category] = counts.get(each.category, 0) + 1
        if counts[each.category] <= per_category:
            rows.append({"prompt": each.prompt, "category": each.category})
    return rows


def mtbench_prompts(question_file: Path) -> list[dict[str, str]]:
    """Return the first turns of the MT-Bench questions as rows."""
    lines = question_file.read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines if line.strip()]
    return [{"prompt": question["turns"][0], "category": question["category"]} for question in questions]


def _order(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
