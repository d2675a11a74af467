"""The part of the chart's values.schema.json about accelerator profiles, generated from `Profile`.

usage: python -m wrpo_operator.sizing.values_schema [--write]

Prints the part; --write puts it into the schema, in the current directory.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from textwrap import indent
from typing import Any

from wrpo_operator.api.stage_lists import replaced_once
from wrpo_operator.sizing.profiles import Profile

SCHEMA = Path("charts/wrpo-operator/values.schema.json")
_PLACE = re.compile(r'(?<="profiles": ).*?(?=,\n *"prices": )', re.DOTALL)
_INDENT = " " * 8


def profiles_schema() -> dict[str, Any]:
    """Return the JSON schema of accelerators.profiles. Fields may be left out, but not be null."""
    made = Profile.model_json_schema()
    properties = {name: _plain(field) for name, field in made["properties"].items()}
    item = {"type": "object", "additionalProperties": False, "required": made["required"], "properties": properties}
    return {"type": "array", "items": item}


def _plain(field: dict[str, Any]) -> dict[str, Any]:
    """Return the rules of a field alone, without title, default and null."""
    alternatives = [option for option in field.get("anyOf", ()) if option != {"type": "null"}]
    rules = alternatives[0] if alternatives else field
    return {name: rule for name, rule in rules.items() if name not in {"title", "default", "description"}}


def with_profiles(schema: str) -> str:
    """Return the text of the schema with the part in its place."""
    part = indent(json.dumps(profiles_schema(), indent=2), _INDENT).lstrip()
    return replaced_once(_PLACE, lambda _: part, schema)


def main() -> None:
    """Print the part, or write it."""
    parser = argparse.ArgumentParser(description="Generate the schema of accelerator profiles from their declaration.")
    parser.add_argument("--write", action="store_true", help="write the file instead of printing the part")
    if not parser.parse_args().write:
        print(json.dumps(profiles_schema(), indent=2))
        return
    SCHEMA.write_text(with_profiles(SCHEMA.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
