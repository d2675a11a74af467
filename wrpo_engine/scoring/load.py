"""Factory of the scorer of an experiment's reward."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, Literal

from wrpo_engine.config import RewardModel
from wrpo_engine.hub.client import section_of
from wrpo_engine.hub.models import ResolvedModel, resolve_model
from wrpo_engine.scoring.encoding import Truncation
from wrpo_engine.scoring.endpoint import EndpointScorer
from wrpo_engine.scoring.endpoint_client import make_client
from wrpo_engine.scoring.function import FunctionScorer
from wrpo_engine.scoring.rewards import MAIN_SECTION, Scorer
from wrpo_engine.stage import StageContext

log = logging.getLogger("wrpo_engine")

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a reward model reads texts. A function and a server see them whole."""

    max_length: int
    """Tokens of a prompt and its response."""
    batch_tokens: int
    dtype: Dtype = "auto"
    truncation: Truncation = "Right"


def reward_details(reward: RewardModel, ctx: StageContext) -> dict[str, Any]:
    """Return the reward's entry for the manifest; nothing is loaded."""
    if reward.function is not None:
        return {"function": reward.function}
    if reward.endpoint is not None:
        return {"endpoint": reward.endpoint, "model": reward.endpoint_model}
    return _resolved(reward, ctx).details()


def _resolved(reward: RewardModel, ctx: StageContext) -> ResolvedModel:
    return resolve_model(reward, ctx, field=model_field(ctx))


def model_field(ctx: StageContext) -> str:
    """Return the field of the spec that names the stage's reward model, for errors."""
    return ctx.model_field("reward", f"{MAIN_SECTION}.model")


def load_scorer(
    reward: RewardModel,
    ctx: StageContext,
    reading: Reading,
) -> Scorer:
    """Load a reward model, import a reward function, or make a reward server's client."""
    log.info("reward: %s", reward.identity.rpartition("@")[2])
    section = section_of(model_field(ctx))
    if reward.function is not None:
        return FunctionScorer(reward.function, section=section)
    if reward.endpoint is not None:
        client = make_client(reward, ctx.environ, section=section)
        return EndpointScorer(client, concurrency=ctx.config.runtime.reward_concurrency)
    from wrpo_engine.scoring.reward_model import RewardScorer

    model = replace(_resolved(reward, ctx), chat_template=reward.chat_template)
    return RewardScorer(
        model,
        max_length=reading.max_length,
        batch_tokens=reading.batch_tokens,
        dtype=reading.dtype,
        truncation=reading.truncation,
    )
