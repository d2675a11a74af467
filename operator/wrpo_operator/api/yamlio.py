"""YAML as kubectl reads it.

PyYAML takes `3e-7` for a string, Kubernetes for a number; learning rates are written that way.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_FLOAT = re.compile(
    r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
)


class _Loader(yaml.SafeLoader):
    """SafeLoader with JSON's floats, and timestamps left as text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":timestamp", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


class _Dumper(yaml.SafeDumper):
    """No anchors; long and multi-line texts as blocks."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 -- signature of the base class
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def load_all(text: str) -> list[Any]:
    """All documents of a YAML text, empty ones left out."""
    return [document for document in yaml.load_all(text, Loader=_Loader) if document is not None]


def load(text: str) -> Any:
    """Return the only document of a YAML text."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506 -- a SafeLoader


def dump(value: Any) -> str:
    """Block style, keys in their own order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
