"""Readers of the judge prompts' files: the originals' own, and judge_prompts.json of own sets."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from wrpo_engine.bundles.places import FIELD, Bundle
from wrpo_engine.bundles.rows import table
from wrpo_engine.bundles.templates import ALPACA_PROMPT, ARENA_SYSTEM, ARENA_USER
from wrpo_engine.errors import DataError
from wrpo_engine.formats.lines import decoded_lines, unreadable
from wrpo_engine.formats.shown import shown

OWN = "judge_prompts.json"
"""An object of name -> text, which takes precedence over the originals' files."""
_SETTINGS = "judge_utils.py"
_BASELINES = {
    "v0.1": {"": "gpt-4-0314"},
    "v2.0": {"": "o3-mini-2025-01-31", "creative_writing": "gemini-2.0-flash-001"},
}
"""Version -> category -> model of the baseline's answers; an empty category stands for all others."""


def own_templates(bundle: Bundle) -> dict[str, str]:
    """Return the texts of judge_prompts.json by name; nothing if there is none."""
    path = bundle.find(OWN)
    if path is None:
        return {}
    try:
        content = json.loads("".join(decoded_lines(path, field=FIELD)))
    except (ValueError, RecursionError) as error:
        raise unreadable(path, error, field=FIELD) from error
    if not isinstance(content, dict) or not all(isinstance(text, str) for text in content.values()):
        raise DataError(
            f"{path} is {shown(content)}, but an object of texts by name is needed",
            code="JudgePromptFormat",
            field=FIELD,
            hint='Write {"user": "..", "system": ".."}; the guide of benchmarks names the prompts.',
        )
    return content


def alpaca_templates(bundle: Bundle) -> dict[str, str]:
    """Return AlpacaEval's judge prompt, byte by byte as the original file has it."""
    own = own_templates(bundle)
    if ALPACA_PROMPT in own:
        return own
    path = bundle.find(f"alpaca_eval_clf_gpt4_turbo/{ALPACA_PROMPT}.txt", f"{ALPACA_PROMPT}.txt")
    return own if path is None else own | {ALPACA_PROMPT: "".join(decoded_lines(path, field=FIELD))}


def mt_bench_templates(bundle: Bundle) -> dict[str, str]:
    """Return FastChat's prompts for the grading of single answers as NAME/system and NAME/user."""
    if own := own_templates(bundle):
        return own
    path = bundle.find("judge_prompts.jsonl")
    rows = [] if path is None else [row for row in table(path) if row.optional("type") == "single"]
    return {
        f"{row.text('name')}/{part}": row.text(column)
        for row in rows
        for part, column in (("system", "system_prompt"), ("user", "prompt_template"))
    }


def arena_templates(bundle: Bundle, version: str) -> dict[str, str]:
    """Return Arena-Hard's prompts: of the config file, and for v2.0 the system messages of judge_utils.py."""
    if own := own_templates(bundle):
        return own
    config = _arena_config(bundle, version)
    found: dict[str, str] = {}
    template = config.get("prompt_template")
    template = template[0] if isinstance(template, list) and len(template) == 1 else template
    if isinstance(template, str):
        found[ARENA_USER] = template
    if isinstance(config.get("system_prompt"), str):
        found[ARENA_SYSTEM] = config["system_prompt"]
    for category, settings in _arena_settings(bundle).items():
        if isinstance(settings.get("system_prompt"), str):
            found[f"{ARENA_SYSTEM}/{category}"] = settings["system_prompt"]
    return found


def arena_baselines(bundle: Bundle, version: str) -> Callable[[str], str]:
    """Return the model of the baseline's answers by category."""
    defaults = _BASELINES[version]
    config = _arena_config(bundle, version)
    settings = _arena_settings(bundle)

    def model(category: str) -> str:
        for value in (settings.get(category, {}).get("baseline"), config.get("baseline_model")):
            if isinstance(value, str):
                return value
        return defaults.get(category, defaults[""])

    return model


def baseline_files(version: str) -> list[str]:
    """Return the ends of the paths of the usual baselines' answers."""
    return [f"model_answer/{model}.jsonl" for model in _BASELINES[version].values()]


def _arena_config(bundle: Bundle, version: str) -> Mapping[str, Any]:
    path = bundle.find(f"arena-hard-{version}.yaml", *(("judge_config.yaml",) if version == "v0.1" else ()))
    if path is None:
        return {}
    try:
        content = yaml.safe_load("".join(decoded_lines(path, field=FIELD)))
    except yaml.YAMLError as error:
        raise unreadable(path, error, field=FIELD) from error
    return content if isinstance(content, dict) else {}


def _arena_settings(bundle: Bundle) -> Mapping[str, Mapping[str, Any]]:
    """Return category -> settings of JUDGE_SETTINGS. The file is read as text, never run."""
    path = bundle.find(_SETTINGS)
    if path is None:
        return {}
    try:
        tree = ast.parse("".join(decoded_lines(path, field=FIELD)))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise unreadable(path, error, field=FIELD) from error
    values: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            values[node.targets[0].id] = _constant(node.value, values)
    settings = values.get("JUDGE_SETTINGS")
    if not isinstance(settings, dict):
        return {}
    return {category: entry for category, entry in settings.items() if isinstance(entry, dict)}


def _constant(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """Return a text, an object of texts or the value of a name; None for anything else."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return names.get(name)
        case ast.Dict(keys=keys, values=values):
            return {
                _constant(key, names): _constant(value, names)
                for key, value in zip(keys, values, strict=True)
                if key is not None
            }
        case _:
            return None
