"""Content of a bundle before it is written, and the rules that it must keep."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import polars as pl

from wrpo_engine.bundles.items import BenchItem
from wrpo_engine.bundles.places import FIELD
from wrpo_engine.bundles.templates import DELIMITERS, MAX_TURNS, MT_NEEDS_REFERENCE, check_templates
from wrpo_engine.contract.benchmarks import Protocol
from wrpo_engine.errors import DataError
from wrpo_engine.formats.shown import names
from wrpo_engine.prompts.split import is_unicode
from wrpo_engine.seeds import seed_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer by turn, and the model that gave it."""

    model: str
    turns: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a loader has read."""

    version: str
    items: Sequence[BenchItem]
    """Those that systems are evaluated on."""
    templates: Mapping[str, str]
    references: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reference_set: str = ""
    baseline: Mapping[str, Answer] | None = None
    """None: the bundle has none, so that a system must be named."""
    regulariser: pl.DataFrame | None = None
    development: Sequence[BenchItem] = ()
    """Those that are set aside for searches."""


def limited(content: Content, limit: int | None) -> Content:
    """Return the content with the first items only."""
    return replace(content, items=tuple(content.items)[:limit])


def with_development(content: Content, count: int | None) -> Content:
    """Return the content with this number of texts set aside for searches; DataError if none is left to evaluate.

    The hash of the text chooses them, so that they do not depend on the order of the bundle, and items of one text stay
    together: what a search has seen is never evaluated.
    """
    if count is None:
        return content
    keys = {item.item_id: _key_of_text(item) for item in content.items}
    chosen = frozenset(sorted(set(keys.values()))[:count])
    rest = [item for item in content.items if keys[item.item_id] not in chosen]
    if not rest:
        raise DataError(
            f"development sets {count} items aside, and the benchmark has {len(set(keys.values()))} different ones: "
            "none is left to evaluate",
            code="BundleEmpty",
            field="evaluation.benchmarks",
            hint="Lower development, or raise limit.",
        )
    aside = [item for item in content.items if keys[item.item_id] in chosen]
    return replace(content, items=rest, development=aside)


def _key_of_text(item: BenchItem) -> int:
    return seed_of(json.dumps([[dict(message) for message in item.messages], list(item.turns)], sort_keys=True))


def check(content: Content, protocol: Protocol | None) -> None:
    """Raise DataError for the first rule that the content breaks."""
    if not content.items:
        raise _fault("the bundle has no items", "Check which file it was read from, and `limit`.", code="BundleEmpty")
    _check_ids(content.items)
    blank = [item.item_id for item in content.items if not _is_filled(item.turns)]
    if blank:
        raise _fault(f"the prompt of item {_some(blank)} is empty", "Remove it, or write it.")
    if content.baseline is not None:
        _check_baseline(content.items, content.baseline)
    if content.regulariser is not None:
        _check_regulariser(content.items, content.regulariser)
    broken = [name for name, text in content.templates.items() if not is_unicode(name + text)]
    if broken:
        raise _fault(f"judge prompt {broken[0]!r} holds half of a surrogate pair, which is not text", "Correct it.")
    if protocol is not None:
        check_templates(protocol, content.templates)
        _check_turns(content.items, MAX_TURNS[protocol], protocol)
        if protocol == "MTBench":
            _check_references(content)


def marked(texts: Sequence[str], protocol: Protocol | None) -> int:
    """Return how many texts hold a text that encloses an answer in the judge prompt."""
    marks = () if protocol is None else DELIMITERS[protocol]
    return sum(any(mark in text for mark in marks) for text in texts)


def _check_ids(items: Sequence[BenchItem]) -> None:
    seen: dict[str, BenchItem] = {}
    for item in items:
        # Ids of one normal form look the same in all messages and tables.
        first = seen.setdefault(unicodedata.normalize("NFC", item.item_id), item)
        if first is not item:
            same, forms = (
                f"the same id {item.item_id!r}",
                f"ids of one normal form, {first.item_id!a} and {item.item_id!a}",
            )
            raise _fault(
                f"items {first.index + 1} and {item.index + 1} have {same if first.item_id == item.item_id else forms}",
                "Give each item a separate id.",
                code="BundleDuplicate",
            )


def _check_baseline(items: Sequence[BenchItem], baseline: Mapping[str, Answer]) -> None:
    missing = [item.item_id for item in items if item.item_id not in baseline]
    if missing:
        raise _fault(
            f"the baseline has no answer to item {_some(missing)}", "Add the answers, or remove the baseline's file."
        )
    empty = [item.item_id for item in items if not _is_filled(baseline[item.item_id].turns)]
    if empty:
        raise _fault(
            f"the baseline's answer to item {_some(empty)} is empty, so every system would beat it",
            "Write the answer, remove the item, or use another baseline.",
        )


def _is_filled(turns: Sequence[str]) -> bool:
    return bool(turns) and all(text.strip() for text in turns)


def _check_regulariser(items: Sequence[BenchItem], regulariser: pl.DataFrame) -> None:
    known = set(regulariser["index"].to_list())
    missing = [str(item.index) for item in items if item.index not in known]
    if missing:
        raise _fault(
            f"df_gamed.csv has no instruction_difficulty for index {_some(missing)}",
            "Use the file of this data set, or remove it to report LC-minimal.",
        )


def _check_turns(items: Sequence[BenchItem], most: int, protocol: Protocol) -> None:
    longer = [item.item_id for item in items if len(item.turns) > most]
    if longer:
        raise _fault(
            f"item {_some(longer)} has more turns than the judge prompts of {protocol} show ({most})",
            "Put earlier turns into `messages`, or choose another protocol.",
        )


def _check_references(content: Content) -> None:
    missing = [
        item.item_id
        for item in content.items
        if item.category in MT_NEEDS_REFERENCE and len(content.references.get(item.item_id, ())) < len(item.turns)
    ]
    if missing:
        where = f" in the set {content.reference_set!r}" if content.reference_set else ""
        raise _fault(
            f"item {_some(missing)} has no reference answer to each turn{where}; the categories "
            f"{names(sorted(MT_NEEDS_REFERENCE))} need them",
            "Add the answers, or choose another reference set.",
            code="ReferenceMissing",
        )


def _some(ids: Sequence[str]) -> str:
    return ids[0] if len(ids) == 1 else f"{ids[0]} (and of {len(ids) - 1} more)"


def _fault(rule: str, hint: str, *, code: str = "BundleInvalid") -> DataError:
    return DataError(rule, code=code, field=FIELD, hint=hint)
