"""Questions with the marks of the original judge prompts, without their texts, and a reward whose opinion is known."""

from __future__ import annotations


def alpaca(prompt: str, first: str, second: str) -> str:
    """The marks of AlpacaEval's judge prompt, without its text."""
    outputs = "\n    },\n    {\n".join(
        f'        "model_identifier": "{name}",\n        "output": """{text}"""'
        for name, text in (("m", first), ("M", second))
    )
    return (
        f'## Instruction\n\n{{\n    "instruction": """{prompt}""",\n}}\n\n## Model Outputs\n\nThe outputs.\n\n'
        f"{{\n    {{\n{outputs}\n    }}\n}}\n\n## Task\n\nm or M"
    )


def arena(prompt: str, first: str, second: str) -> str:
    return (
        f"<|User Prompt|>\n{prompt}\n\n<|The Start of Assistant A's Answer|>\n{first}\n"
        f"<|The End of Assistant A's Answer|>\n\n<|The Start of Assistant B's Answer|>\n{second}\n"
        "<|The End of Assistant B's Answer|>"
    )


def by_length(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward: longer is better, and one text is a fault."""
    if any("fault" in text for text in responses):
        raise RuntimeError("no reward for a fault")
    return [len(text) / 10 for text in responses]


_QUESTION = alpaca("{instruction}", "{output_1}", "{output_2}")
ALPACA = f"<|im_start|>system\nJudge.\n<|im_end|>\n<|im_start|>user\n{_QUESTION}\n<|im_end|>"
ARENA = arena("{question_1}", "{answer_1}", "{answer_2}")
