"""Row sources of the training stages: tokenised once, the same rows on all ranks and in later attempts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from typing_extensions import override

from wrpo_engine import __version__
from wrpo_engine.artifacts.volume import address
from wrpo_engine.config import OptimizerParams
from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.hub.models import ResolvedModel, context_length, tokenizer_of, vocabulary_size
from wrpo_engine.stage import StageContext
from wrpo_engine.text import chat
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.data.inputs import ChatEncoder
from wrpo_engine.training.data.token_cache import read_tokens, write_tokens
from wrpo_engine.training.data.token_ids import read_tokenized_triples
from wrpo_engine.training.data.tokenize import TextRow, TokenizedRows, require_rows, require_unchanged, tokenize_rows
from wrpo_engine.training.distributed.collectives import Group
from wrpo_engine.training.paths import MODEL_FIELD, TOKENS_DIRECTORY
from wrpo_engine.training.preflight import length_bound

log = logging.getLogger("wrpo_engine")

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")
_ROWS_SHOWN = 5
_CONTEXT = "the model's context is shorter"


class RowSource(Protocol):
    """The origin of an attempt's rows."""

    @property
    def needs_tokenizer(self) -> bool:
        """False if rows are token ids, which do not require a tokenizer in the model directory."""
        ...

    def rows(self, ctx: StageContext, params: OptimizerParams, base: ResolvedModel) -> TokenizedRows:
        """Return the rows; called on rank 0 only, and not again once the stage has published them.

        Raise DataError or ConfigError for rows that cannot be trained on.
        """
        ...


@dataclass(frozen=True, slots=True)
class TextSource(RowSource):
    """Text rows of an upstream artifact, tokenised with the target's chat template."""

    role: str
    file: str
    read: Callable[[Path], list[TextRow]]
    needs_tokenizer: bool = True

    @override
    def rows(self, ctx: StageContext, params: OptimizerParams, base: ResolvedModel) -> TokenizedRows:
        artifact = ctx.input(self.role)
        text_rows = self.read(artifact.file(self.file))
        bounded = params.model_copy(update={"max_length": length_bound(params, base)})
        where = address(artifact.ref)
        tokenized = tokenize_rows(text_rows, ChatEncoder(tokenizer_of(base, field=MODEL_FIELD)), bounded)
        require_unchanged(tokenized, num_rows=len(text_rows), artifact=where, field=f"{MODEL_FIELD}.model")
        if text_rows and not tokenized.rows and bounded.max_length < params.max_length:
            raise DataError(
                f"none of the {len(text_rows)} rows of {where} fits the context of {base.identity}, "
                f"which holds {bounded.max_length} tokens for prompt and response",
                code="ContextTooShort",
                field=f"{MODEL_FIELD}.model",
                hint="Use a model with a longer context, or use shorter prompts.",
            )
        require_rows(tokenized, num_rows=len(text_rows), artifact=where)
        return tokenized


@dataclass(frozen=True, slots=True)
class TokenSource(RowSource):
    """Triples of token ids, used unchanged; unusual rows are counted and logged."""

    reference: str
    """Path or storage://PATH."""
    has_source: bool
    needs_tokenizer: bool = False

    @override
    def rows(
        self,
        ctx: StageContext,
        params: OptimizerParams,
        base: ResolvedModel,
    ) -> TokenizedRows:
        path = Path(ctx.resolve_path(self.reference))
        if not path.is_absolute():
            raise ConfigError(
                "training.tokenizedTriples",
                self.reference,
                "it must be an absolute path or storage://PATH",
                "Use the absolute path in the stage's container.",
            )
        vocabulary = vocabulary_size(base)
        if vocabulary is None:
            raise base.directory.invalid(
                "its config.json has no vocab_size, which the check of token ids needs",
                "Use a causal language model.",
            )
        triples = read_tokenized_triples(path, has_source=self.has_source, vocabulary=vocabulary)
        _require_context(triples.rows, path, base)
        details: dict[str, Any] = {
            "tokenized_triples": {"path": self.reference, "sha256": triples.sha256},
            "unusual_rows": _unusual(triples.rows, optional_tokenizer(base)),
        }
        return TokenizedRows(triples.rows, details=details)


def _require_context(rows: Sequence[TokenRow], path: Path, base: ResolvedModel) -> None:
    """Raise DataError for rows that exceed the model's context, because rows of token ids are never cut."""
    context = context_length(base)
    if context is None:
        return
    lengths = [len(row.prompt) + max(map(len, row.responses)) for row in rows]
    if too_long := [index for index, length in enumerate(lengths) if length > context]:
        first = too_long[0]
        raise DataError(
            f"{rows[first].row_id} of {path} has {lengths[first]} tokens with its longest response, but the context of "
            f"{base.identity} holds {context}" + (f"; {len(too_long)} rows in all" if len(too_long) > 1 else ""),
            code="ContextTooShort",
            field="training.tokenizedTriples",
            hint="Shorten or remove these rows, or train a model with a longer context.",
        )


def exported_tokenizer(source: RowSource, base: ResolvedModel) -> Any:
    """Return the tokenizer of the trained model; None if rows are token ids and the model directory has none."""
    return tokenizer_of(base, field=MODEL_FIELD) if source.needs_tokenizer else optional_tokenizer(base)


def optional_tokenizer(base: ResolvedModel) -> Any:
    """Return the model's tokenizer, or None if its directory has none."""
    if not any((base.path / name).is_file() for name in _TOKENIZER_FILES):
        return None
    return tokenizer_of(base, field=MODEL_FIELD, needs_template=False)


def _unusual(rows: Sequence[TokenRow], tokenizer: Any) -> dict[str, int]:
    """Count the rows with a sequence that has not exactly one BOS and one end-of-turn; all are trained on.

    Keys describe the fault; the first rows of each are logged.
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
            "%d of %d tokenised rows have %s; they are trained on unchanged: %s", len(names), len(rows), fault, shown
        )
    return {fault: len(names) for fault, names in sorted(found.items())}


def token_rows(
    ctx: StageContext, params: OptimizerParams, source: RowSource, base: ResolvedModel, group: Group
) -> TokenizedRows:
    """Publish the rows from rank 0 unless an earlier attempt has; every rank reads the published file."""
    name = f"{TOKENS_DIRECTORY}/rows-{__version__}.parquet"

    def make() -> None:
        if name not in ctx.output.published(TOKENS_DIRECTORY):
            tokenized = source.rows(ctx, params, base)
            ctx.output.publish(name, lambda path: write_tokens(path, tokenized))

    group.on_main(make)
    tokenized = read_tokens(ctx.output.fetch(name))
    if group.is_main:
        if source.needs_tokenizer and (bound := length_bound(params, base)) < params.max_length:
            log.warning("rows are cut to %d tokens, not to maxLength %d: %s", bound, params.max_length, _CONTEXT)
        log.info(
            "%d rows, %d responses cut to maxLength, dropped: %s, changed by the tokenizer: %s, "
            "with control tokens as text: %d",
            len(tokenized.rows),
            tokenized.num_truncated,
            dict(tokenized.dropped) or "none",
            dict(tokenized.changed) or "none",
            tokenized.num_control_text,
        )
    return tokenized
