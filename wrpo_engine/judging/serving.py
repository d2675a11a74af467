"""A judge of the stage's own: a server on the loopback for the stage's time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from wrpo_engine.contract.evaluation import JudgeParams
from wrpo_engine.stage import StageContext


@contextlib.contextmanager
def serving(ctx: StageContext, params: JudgeParams) -> Iterator[str | None]:
    """Yield the base URL of the stage's own judge; None if it uses an endpoint."""
    del ctx, params
    yield None
