"""The section of the experiment's spec that is the judge of a stage. Errors name fields of it."""

from __future__ import annotations

from wrpo_engine.config import Runtime

ANY_JUDGE = "evaluation.judges"
"""Section of a stage that no experiment names, e.g. with a configuration written by hand."""


def judge_section(runtime: Runtime) -> str:
    """Return the section of a stage's judge, e.g. evaluation.judges[gpt4]."""
    return runtime.model_sections.get("model", ANY_JUDGE)
