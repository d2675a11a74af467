"""Tools of the engine as commands: they run in a separate process, because the operator imports no model library."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence

import click

_ENGINE = "wrpo_engine"
_NEEDED = "polars"
"""Part of the extra `engine`; an installation of the operator alone does not have it."""


def require_engine() -> None:
    """Raise ClickException unless the engine's packages are installed."""
    if importlib.util.find_spec(_NEEDED) is None:
        raise click.ClickException("the engine is not installed; run `pip install 'wrpo[engine]'`")


def run_tool(tool: str, arguments: Sequence[str]) -> int:
    """Run a tool of `wrpo-engine` and return its exit code."""
    require_engine()
    return subprocess.run([sys.executable, "-m", _ENGINE, tool, *arguments], check=False).returncode
