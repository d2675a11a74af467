"""Published decoding settings of benchmarks, and the sizes of benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from wrpo_engine.contract.benchmarks import BenchmarkKind, Protocol

PresetName: TypeAlias = Literal["FuseEval", "SimPO", "Official"]
_GREEDY: Mapping[str, Any] = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 4096}

PRESETS: Mapping[tuple[BenchmarkKind, PresetName], Mapping[str, Any]] = {
    ("AlpacaEval2", "FuseEval"): {
        "temperature": 0.6,
        "top_p": 0.9,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "max_tokens": 4096,
    },
    ("AlpacaEval2", "SimPO"): {"temperature": 0.9, "top_p": 1.0},
    ("ArenaHard", "FuseEval"): _GREEDY,
    ("ArenaHard", "Official"): _GREEDY,
    ("MTBench", "FuseEval"): {"max_tokens": 4096},
    ("MTBench", "Official"): {"max_tokens": 1024},
}
"""Settings that replace those of spec.evaluation; benchmarks[].sampling replaces these. MTBench has a temperature for
each category."""


@dataclass(frozen=True, slots=True)
class BenchmarkSize:
    """Size of a published benchmark."""

    items: int
    turns: int
    """Answers of a system to one item."""


SIZES: Mapping[BenchmarkKind, BenchmarkSize] = {
    "AlpacaEval2": BenchmarkSize(items=805, turns=1),
    "ArenaHard": BenchmarkSize(items=500, turns=1),
    "ArenaHardV2": BenchmarkSize(items=750, turns=1),
    "MTBench": BenchmarkSize(items=80, turns=2),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """Requests that a protocol makes about one item."""

    requests: int
    answers: int
    """Answers that one request contains."""
    has_reasons: bool
    """Whether a reply is a text, and not one token."""


ASKED: Mapping[Protocol, Asked] = {
    "AlpacaEval2": Asked(requests=1, answers=2, has_reasons=False),
    "ArenaHard": Asked(requests=2, answers=2, has_reasons=True),
    "ArenaHardV2": Asked(requests=2, answers=2, has_reasons=True),
    "MTBench": Asked(requests=2, answers=1, has_reasons=True),
}
