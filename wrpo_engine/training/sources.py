"""The rows of a training stage: made once in the stage's life, the same on all ranks and for later attempts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from wrpo_engine import __version__, chat
from wrpo_engine.artifacts.volume import address
from wrpo_engine.config import OptimizerParams
from wrpo_engine.errors import ConfigError
from wrpo_engine.models import ResolvedModel, tokenizer_of
from wrpo_engine.stage import StageContext
from wrpo_engine.training.collectives import Group
from wrpo_engine.training.inputs import ChatEncoder
from wrpo_engine.training.places import MODEL_FIELD, TOKENS_DIRECTORY
from wrpo_engine.training.rows import TokenRow
from wrpo_engine.training.token_cache import read_tokens, write_tokens
from wrpo_engine.training.tokenize import TextRow, TokenizedRows, require_rows, require_unchanged, tokenize_rows
from wrpo_engine.training.tokenized import read_tokenized_triples, vocabulary_size

log = logging.getLogger("wrpo_engine")

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")
_ROWS_SHOWN = 5


class RowSource(Protocol):
    """Where an attempt's rows come from."""

    @property
    def needs_tokenizer(self) -> bool:
        """False if rows are token ids already: then a model directory without a tokenizer will do."""
        ...

    def rows(self, ctx: StageContext, params: OptimizerParams, base: ResolvedModel) -> TokenizedRows:
        """Make the rows; called on rank 0, and not again once a training stage has them."""
        ...


@dataclass(frozen=True, slots=True)
class TextSource:
    """Text rows of an upstream artifact, which the target's chat template turns into tokens."""

    role: str
    file: str
    read: Callable[[Path], list[TextRow]]
    needs_tokenizer: bool = True

    def rows(self, ctx: StageContext, params: OptimizerParams, base: ResolvedModel) -> TokenizedRows:
        artifact = ctx.input(self.role)
        text_rows = self.read(artifact.file(self.file))
        tokenized = tokenize_rows(text_rows, ChatEncoder(tokenizer_of(base, field=MODEL_FIELD)), params)
        where = address(artifact.ref)
        require_unchanged(tokenized, num_rows=len(text_rows), artifact=where, field=f"{MODEL_FIELD}.model")
        require_rows(tokenized, num_rows=len(text_rows), artifact=where)
        return tokenized


@dataclass(frozen=True, slots=True)
class TokenSource:
    """Triples of token ids, taken as they are; what looks wrong with them is counted and logged."""

    reference: str
    """Path or storage://PATH."""
    has_source: bool
    needs_tokenizer: bool = False

    def rows(
        self,
        ctx: StageContext,
        params: OptimizerParams,  # noqa: ARG002
        base: ResolvedModel,
    ) -> TokenizedRows:
        path = Path(ctx.resolve_path(self.reference))
        if not path.is_absolute():
            raise ConfigError(
                "training.tokenizedTriples",
                self.reference,
                "it must be an absolute path or storage://PATH",
                "Write the whole path, as the stage's process sees it.",
            )
        triples = read_tokenized_triples(path, has_source=self.has_source, vocabulary=vocabulary_size(base.path))
        details: dict[str, Any] = {
            "tokenized_triples": {"path": self.reference, "sha256": triples.sha256},
            "unusual_rows": _unusual(triples.rows, optional_tokenizer(base)),
        }
        return TokenizedRows(triples.rows, details=details)


def optional_tokenizer(base: ResolvedModel) -> Any:
    """Return the model's tokenizer, or None if its directory has none."""
    if not any((base.path / name).is_file() for name in _TOKENIZER_FILES):
        return None
    return tokenizer_of(base, field=MODEL_FIELD, needs_template=False)


def _unusual(rows: Sequence[TokenRow], tokenizer: Any) -> dict[str, int]:
    """Count the rows with a sequence that has not exactly one BOS and one end-of-turn; all are trained on.

    Keys say what is unusual; the first rows of each are logged.
    """
    if tokenizer is None:
        return {}
    found: dict[str, list[str]] = {}
    for row in rows:
        faults = {chat.sequence_fault(tokenizer, row.prompt, response) for response in row.responses}
        for fault in sorted(fault for fault in faults if fault is not None):
            found.setdefault(fault, []).append(row.row_id)
    for fault, names in sorted(found.items()):
        shown = ", ".join(names[:_ROWS_SHOWN]) + (", ..." if len(names) > _ROWS_SHOWN else "")
        log.warning(
            "%d of %d tokenised rows have %s; they are trained on as they are: %s", len(names), len(rows), fault, shown
        )
    return {fault: len(names) for fault, names in sorted(found.items())}


def token_rows(
    ctx: StageContext, params: OptimizerParams, source: RowSource, base: ResolvedModel, group: Group
) -> TokenizedRows:
    """Make the rows on rank 0 if no earlier attempt has done so; every rank reads what was published."""
    name = f"{TOKENS_DIRECTORY}/rows-{__version__}.parquet"

    def make() -> None:
        if name not in ctx.output.published(TOKENS_DIRECTORY):
            tokenized = source.rows(ctx, params, base)
            ctx.output.publish(name, lambda path: write_tokens(path, tokenized))

    group.on_main(make)
    tokenized = read_tokens(ctx.output.fetch(name))
    if group.is_main:
        log.info(
            "%d rows, %d responses cut to maxLength, dropped: %s, not given back as written: %s, "
            "with control tokens as text: %d",
            len(tokenized.rows),
            tokenized.num_truncated,
            dict(tokenized.dropped) or "none",
            dict(tokenized.changed) or "none",
            tokenized.num_control_text,
        )
    return tokenized
