"""Digests of published files, and the licences of benchmarks."""

from __future__ import annotations

from collections.abc import Mapping

from wrpo_engine.contract.benchmarks import BenchmarkKind

KNOWN: Mapping[str, Mapping[str, str]] = {
    "judge_prompts.jsonl": {
        "fd283293406d024f44c174b094ef48031d0687a4682fd3a56b29b138f80281b6": "MT-Bench judge prompts",
    },
    "mt_bench/question.jsonl": {
        "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7": "MT-Bench questions",
    },
    "mt_bench/reference_answer/gpt-4.jsonl": {
        "f957a5bc977badb66885ec970e6cd08527845780313f0995764260e5777b9b3f": "MT-Bench references of gpt-4, some wrong",
    },
    "mt_bench/reference_answer/gpt-4-0125-preview.jsonl": {
        "e484037da5cc14007dde1d821ef76046fccbd0b2f095237fad9ead2c4fc66800": "MT-Bench references, corrected",
    },
    "df_gamed.csv": {
        "97aeec3f1c7de6dee6fd31fe66f1702623f4614c3efe1c6fc5f4927cd5fd674d": "AlpacaEval 2 regulariser",
    },
    "alpaca_eval_clf.txt": {
        "784227e6dc2832fc08c43d2c8ea3a308e7523780187a1aaad2f85e30bac85f62": "AlpacaEval 2 judge prompt",
    },
}
"""End of a file's name -> sha256 of its content -> what it is."""
LICENCES: Mapping[BenchmarkKind, str] = {
    "AlpacaEval2": "Prompts, baseline and regulariser: CC-BY-NC-4.0. Judge prompt: Apache-2.0.",
    "ArenaHard": "Apache-2.0",
    "ArenaHardV2": "Apache-2.0",
    "MTBench": "Apache-2.0",
    "Custom": "That of its files.",
    "HeldOutReward": "That of its files.",
}
