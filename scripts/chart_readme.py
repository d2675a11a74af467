"""Write charts/wrpo-operator/README.md: the table of values from the comments of values.yaml.

python scripts/chart_readme.py            prints it
python scripts/chart_readme.py --write    writes it
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[1] / "charts" / "wrpo-operator"
KEY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z0-9]+):(?P<rest>.*)$")
INTRODUCTION = """# wrpo-operator

{description}

```
helm install wrpo charts/wrpo-operator -n wrpo-system --create-namespace
helm test wrpo -n wrpo-system
```

Guides: [cluster](../../docs/guides/cluster.md), [upgrade](../../docs/guides/upgrade.md),
[monitoring](../../docs/guides/monitoring.md), [security](../../docs/security.md).

## Values

Generated from `values.yaml` by `make chart-readme`; `values.schema.json` checks them at every install.

| Value | Default | Meaning |
|---|---|---|
"""


def documented(text: str) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, comment above it) of every key of a YAML text that has one."""
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            comment.append(line.lstrip().removeprefix("#").strip())
            continue
        match = KEY.match(line)
        if match is not None:
            indent = len(match["indent"])
            path = [entry for entry in path if entry[0] < indent] + [(indent, match["key"])]
            yield ".".join(key for _, key in path), " ".join(comment)
        comment = []


def rows(text: str) -> Iterator[tuple[str, Any, str]]:
    """Yield (path, default, meaning): each key that has a comment, or no keys below it."""
    values = yaml.safe_load(text)
    seen: set[str] = set()
    for path, meaning in documented(text):
        if path in seen or any(path.startswith(f"{leaf}.") for leaf in seen if not _is_section(_at(values, leaf))):
            continue
        seen.add(path)
        default = _at(values, path)
        if meaning or not _is_section(default):
            yield path, default, meaning


def _at(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values[key] if isinstance(values, dict) and key in values else None
    return values


def _is_section(value: Any) -> bool:
    return isinstance(value, dict) and bool(value)


def readme() -> str:
    """Return the text of README.md for the chart's present values."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    lines = []
    for path, default, meaning in rows((CHART / "values.yaml").read_text(encoding="utf-8")):
        shown = "" if _is_section(default) else f"`{json.dumps(default)}`"
        lines.append(f"| `{path}` | {shown} | {meaning.replace('|', chr(92) + '|')} |")
    return INTRODUCTION.format(description=chart["description"]) + "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        (CHART / "README.md").write_text(readme(), encoding="utf-8")
    else:
        sys.stdout.write(readme())
