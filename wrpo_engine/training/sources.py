"""The rows of a training stage: tokenised once in the stage's life, the same on all ranks and for later attempts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wrpo_engine import __version__
from wrpo_engine.artifacts.volume import address
from wrpo_engine.config import OptimizerParams
from wrpo_engine.models import ResolvedModel, tokenizer_of
from wrpo_engine.stage import StageContext
from wrpo_engine.training.collectives import Group
from wrpo_engine.training.inputs import ChatEncoder
from wrpo_engine.training.places import MODEL_FIELD, TOKENS_DIRECTORY
from wrpo_engine.training.token_cache import read_tokens, write_tokens
from wrpo_engine.training.tokenize import TextRow, TokenizedRows, require_rows, tokenize_rows

log = logging.getLogger("wrpo_engine")


@dataclass(frozen=True, slots=True)
class TextSource:
    """Text rows of an upstream artifact, which the target's chat template turns into tokens."""

    role: str
    file: str
    read: Callable[[Path], list[TextRow]]

    def rows(self, ctx: StageContext, params: OptimizerParams, base: ResolvedModel) -> TokenizedRows:
        artifact = ctx.input(self.role)
        text_rows = self.read(artifact.file(self.file))
        tokenized = tokenize_rows(text_rows, ChatEncoder(tokenizer_of(base, field=MODEL_FIELD)), params)
        require_rows(tokenized, num_rows=len(text_rows), artifact=address(artifact.ref))
        return tokenized


def token_rows(
    ctx: StageContext, params: OptimizerParams, source: TextSource, base: ResolvedModel, group: Group
) -> TokenizedRows:
    """Tokenise on rank 0 if no earlier attempt has done so; every rank reads the result."""
    path = ctx.output.directory / TOKENS_DIRECTORY / f"rows-{__version__}.parquet"

    def tokenize() -> None:
        if not path.is_file():
            write_tokens(path, source.rows(ctx, params, base))

    group.on_main(tokenize)
    tokenized = read_tokens(path)
    if group.is_main:
        log.info(
            "%d rows, %d responses cut to maxLength, dropped: %s",
            len(tokenized.rows),
            tokenized.num_truncated,
            dict(tokenized.dropped) or "none",
        )
    return tokenized
