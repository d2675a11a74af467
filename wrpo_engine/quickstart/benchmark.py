"""The quickstart's benchmark: prompts that the experiment does not train on, and a judge prompt of our own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

ITEMS = 24
"""Prompts that are items of the benchmark, and not prompts of the experiment."""
_JUDGE_PROMPT = '''<|im_start|>system
You compare two outputs for the same instruction and name the better one.
<|im_end|>
<|im_start|>user
Read the instruction and both outputs. Prefer the one that is correct, complete and to the point.

## Instruction

{
    "instruction": """{instruction}""",
}

## Model Outputs

{
    {
        "model_identifier": "m",
        "output": """{output_1}"""
    },
    {
        "model_identifier": "M",
        "output": """{output_2}"""
    }
}

## Task

Reply with the identifier of the better output, m or M, and nothing else.
<|im_end|>
'''


def benchmark_files(rows: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the bundle's files by name: items made from rows with prompt and category, and the judge prompt."""
    items = [
        {"id": f"q{number:02}", "prompt": row["prompt"], "category": row["category"]}
        for number, row in enumerate(rows, start=1)
    ]
    return {
        "items.jsonl": "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items),
        "judge_prompts.json": json.dumps({"alpaca_eval_clf": _JUDGE_PROMPT}, indent=1) + "\n",
    }
