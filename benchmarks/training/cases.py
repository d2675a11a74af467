"""Measured shapes, by level of effort."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from benchmarks.training.workload import Case, Lengths, ModelSize


class Level(StrEnum):
    """Size of the shapes."""

    QUICK = "quick"
    """About a minute in total, to test that it runs."""
    STANDARD = "standard"
    """Some minutes on two cores."""
    FULL = "full"
    """A GPU, or hours on two cores."""


@dataclass(frozen=True, slots=True)
class Effort:
    """Number of runs of each side. Sides alternate."""

    rounds: int
    warmup_steps: int
    timed_steps: int


EFFORTS = {Level.QUICK: Effort(1, 1, 1), Level.STANDARD: Effort(2, 1, 2), Level.FULL: Effort(3, 2, 5)}
"""Steps after the warm-up are timed."""
MODELS = {
    Level.QUICK: ModelSize(2, 128, 384, 4, 2, 4096),
    Level.STANDARD: ModelSize(6, 320, 864, 5, 1, 8192),
    Level.FULL: ModelSize(16, 1024, 2816, 16, 4, 49152),
}
LARGE_VOCABULARY = 131072

MIXED_PROMPT = Lengths(192, 0.9, 16, 1024)
MIXED_RESPONSE = Lengths(192, 0.6, 16, 512)


def shapes(level: Level) -> list[Case]:
    model = MODELS[level]
    scale = 4 if level is Level.QUICK else 1
    mixed_prompt = replace(MIXED_PROMPT, median=MIXED_PROMPT.median // scale, high=MIXED_PROMPT.high // scale)
    mixed_response = replace(MIXED_RESPONSE, median=MIXED_RESPONSE.median // scale, high=MIXED_RESPONSE.high // scale)
    return [
        Case("short", model, Lengths(64 // scale), Lengths(128 // scale), 4, 2),
        Case("long", model, Lengths(1024 // scale), Lengths(256 // scale), 2, 1),
        Case("mixed", model, mixed_prompt, mixed_response, 4, 2),
    ]


def large_vocabulary(level: Level) -> list[Case]:
    model = replace(MODELS[level], vocabulary=LARGE_VOCABULARY)
    scale = 8 if level is Level.QUICK else 1
    return [Case("long, 128k vocabulary", model, Lengths(1024 // scale), Lengths(256 // scale), 1, 1)]


def scaling(level: Level) -> list[Case]:
    """Return the cases of the same global batch for one process and for two."""
    return [replace(case, triples_per_step=4, triples_per_pass=1) for case in shapes(level) if case.name == "mixed"]


def growth(level: Level) -> list[Case]:
    """Return variations of a shape in which one dimension grows at a time."""
    model = MODELS[level]
    scale = 4 if level is Level.QUICK else 1
    base = Case("", model, Lengths(256 // scale), Lengths(128 // scale), 2, 2)
    cases = [replace(base, name=f"{count} triples", triples_per_step=count, triples_per_pass=count) for count in (1, 4)]
    cases += [replace(base, name=f"prompt {count}", prompt=Lengths(count // scale)) for count in (256, 512, 1024)]
    cases += [replace(base, name=f"response {count}", response=Lengths(count // scale)) for count in (256, 512)]
    cases += [replace(base, name="2 responses", num_responses=2)]
    return cases
