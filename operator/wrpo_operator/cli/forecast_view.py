"""Output of `wrpo plan`: tables that programs can cut at columns, and JSON."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import click
from pydantic.alias_generators import to_camel
from rich.console import Console
from rich.table import Table

from wrpo_operator.cli.forecast import UNKNOWN, Forecast, Line
from wrpo_operator.sizing.estimate import PROMPT_TOKENS, RESPONSE_TOKENS, UNCERTAINTY
from wrpo_operator.sizing.inventory import Inventory
from wrpo_operator.sizing.resource_names import listed

NO_ACCELERATORS = (
    "No accelerators are given, so that placements and times are unknown. Set --accelerators, e.g. h100=4x8, "
    "--profile, or spec.accelerator."
)
UNLIMITED = 10_000
"""Width of tables whose lines are not folded: into a pipe, and without the long columns."""
_LONG = ("Needs", "Arithmetic")
"""Columns that are folded on a terminal."""
_ALWAYS = ("Stage", "Becomes", "Placement", "GPUs", "Shards", "Hash")
"""Columns that are shown even if they are empty."""
_LEAST_HOURS = 0.05
"""Fewer are shown as less than 0.1."""
Column = tuple[str, Callable[[Line], str]]


def as_json(name: str, result: Forecast, inventory: Inventory | None, notes: Sequence[str]) -> dict[str, Any]:
    """Return a forecast as JSON; null where something is unknown."""
    found = asdict(result)
    stages = found.pop("lines")
    return {
        "name": name,
        "accelerators": None if inventory is None else [asdict(group) for group in inventory.groups],
        "assumptions": {
            "promptTokens": PROMPT_TOKENS,
            "responseTokens": RESPONSE_TOKENS,
            "uncertaintyFactor": UNCERTAINTY,
        },
        "stages": [_camel(stage) for stage in stages],
        **_camel(found),
        "notes": list(notes),
    }


def show(name: str, result: Forecast, inventory: Inventory | None, notes: Sequence[str], *, is_wide: bool) -> None:
    """Print a forecast as a table, then totals, warnings and notes."""
    columns = [
        column
        for column in _columns(inventory, is_wide=is_wide)
        if column[0] in _ALWAYS or any(column[1](line) for line in result.lines)
    ]
    is_folded = sys.stdout.isatty() and any(title in _LONG for title, _ in columns)
    console = Console(width=None if is_folded else UNLIMITED, soft_wrap=not is_folded)
    table = Table(title=name, title_justify="left", box=None, pad_edge=False)
    for title, _ in columns:
        table.add_column(title, no_wrap=title not in _LONG or not is_folded, overflow="fold")
    for line in result.lines:
        table.add_row(*(text(line) for _, text in columns))
    console.print(table)
    for sentence in (*_totals(result, inventory), *_networks(result), *_judging(result), *_measured(result)):
        _say(sentence)
    for sentence in result.warnings:
        _say(f"Warning: {sentence}")
    for sentence in notes if inventory is not None else ():
        _say(f"Note: {sentence}")


def _say(sentence: str) -> None:
    """Print a sentence: on a terminal broken between words, else as one line."""
    click.echo(click.wrap_text(sentence, shutil.get_terminal_size().columns) if sys.stdout.isatty() else sentence)


def _columns(inventory: Inventory | None, *, is_wide: bool) -> list[Column]:
    identity: list[Column] = [("Stage", lambda line: line.stage), ("Becomes", lambda line: line.becomes)]
    shards: Column = ("Shards", lambda line: "auto" if line.placement == UNKNOWN else str(line.shards))
    hashes: list[Column] = [("Hash", lambda line: line.hash)]
    needs: Column = ("Needs", lambda line: ", ".join(line.needs))
    if inventory is None:
        return [*identity, shards, *hashes, needs]
    sized: list[Column] = [
        ("Placement", lambda line: line.placement),
        ("GPUs", lambda line: str(line.gpus)),
        ("Tokens", lambda line: _amount(line.tokens)),
        ("Requests", lambda line: "" if line.requests is None else str(line.requests)),
        ("GPU-h", lambda line: _hours(line.gpu_hours)),
        ("Time", lambda line: _time(line.hours)),
        ("Price", lambda line: "" if line.price is None else f"{line.price:.2f}"),
        ("Download", lambda line: _bytes(line.download_bytes)),
    ]
    more: list[Column] = [
        ("Memory", lambda line: _gib(line.memory_gib)),
        ("Disk", lambda line: _gib(line.disk_gib)),
        ("Stored", lambda line: _bytes(line.stored_bytes or 0)),
        needs,
        ("Arithmetic", lambda line: line.arithmetic),
    ]
    return [*identity, *sized, *hashes, *(more if is_wide else [])]


def _totals(result: Forecast, inventory: Inventory | None) -> list[str]:
    if inventory is None:
        return [NO_ACCELERATORS]
    parts = [f"{result.gpus_at_once} GPUs at once"]
    if result.gpu_hours is not None and result.hours is not None:
        parts += [f"{_hours(result.gpu_hours)} GPU-hours", f"{_time(result.hours)} in all"]
    else:
        counted = any(line.tokens for line in result.lines)
        parts += ["times unknown" if counted else "times unknown: set --prompts, or prompts.limit"]
    parts += [] if result.price is None else [f"price {result.price:.2f}"]
    parts += [f"{_bytes(result.download_bytes)} to download"] if result.download_bytes else []
    assumed = f"prompts of {PROMPT_TOKENS} and responses of {RESPONSE_TOKENS} tokens"
    doubts = f"right within a factor of {UNCERTAINTY}; loading and waiting are not counted"
    return [f"Total: {', '.join(parts)}. Times are estimates for {assumed}, {doubts}."]


def _judging(result: Forecast) -> list[str]:
    """Return the requests to judges, which may cost money."""
    asked = [line for line in result.lines if line.requests]
    if not asked:
        return []
    requests, tokens = (sum(getattr(line, name) or 0 for line in asked) for name in ("requests", "tokens"))
    return [f"Judges: {requests} requests in {len(asked)} stages, about {_amount(tokens)} tokens, without retries."]


def _networks(result: Forecast) -> list[str]:
    """Return the networks that gangs of several nodes need, with the stages that need the same."""
    found: dict[tuple[int, float], list[str]] = {}
    for line in result.lines:
        if line.exchanged_bytes and line.network is not None:
            found.setdefault((line.exchanged_bytes, line.network), []).append(line.stage)
    return [
        f"Network: for each micro-batch of {listed(stages)}, a node exchanges {_bytes(exchanged)} with the others. "
        f"With less than about {network * 8 / 1e9:.0f} Gbit/s for a node, this takes longer than computing; the times "
        "do not count it."
        for (exchanged, network), stages in found.items()
    ]


def _measured(result: Forecast) -> list[str]:
    """Return which times are not calculated."""
    found = [f"{line.stage} ({line.measured_by})" for line in result.lines if line.measured_by is not None]
    return [f"Measured by earlier experiments, with loading and interruptions: {', '.join(found)}."] if found else []


def _amount(number: int | None) -> str:
    if number is None:
        return ""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _hours(hours: float | None) -> str:
    return "" if hours is None else "<0.1" if 0 < hours < _LEAST_HOURS else f"{hours:.1f}"


def _time(hours: float | None) -> str:
    if hours is None:
        return ""
    minutes = round(hours * 60)
    if hours and not minutes:
        return "<1m"
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m"


def _gib(number: int | None) -> str:
    return "" if number is None else f"{number}Gi"


def _bytes(number: int) -> str:
    if not number:
        return ""
    return f"{number / 1e12:.1f} TB" if number >= 10**12 else f"{number / 1e9:.1f} GB"


def _camel(values: dict[str, Any]) -> dict[str, Any]:
    return {to_camel(name): value for name, value in values.items()}
