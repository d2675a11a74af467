"""The three ways in which stages load a model directory, up to where its first token is read."""

from __future__ import annotations

from pathlib import Path

from engine_support import NOON

from wrpo_engine.artifacts import VolumeStore
from wrpo_engine.config import ArtifactRef, ModelRef, TrainParams
from wrpo_engine.hub.models import (
    ResolvedModel,
    check_directory,
    context_length,
    generation_stops,
    stop_token_ids,
    tokenizer_of,
)
from wrpo_engine.sampling.backends import make_sampler
from wrpo_engine.sampling.preflight import check_source
from wrpo_engine.sampling.sampler import SampleRequest, SamplerSettings
from wrpo_engine.scoring.reward_model import RewardScorer
from wrpo_engine.text.chat import end_of_turn_id
from wrpo_engine.training.export.export import rehearse_export, trained_model
from wrpo_engine.training.models.model import load_causal_lm
from wrpo_engine.training.preflight import check_trainable, length_bound


def _resolved(directory: Path, field: str) -> ResolvedModel:
    check_directory(directory, str(directory), field)
    return ResolvedModel(directory, str(directory), None, field=field)


def sample(directory: Path) -> None:
    """Load as the sample stage does with the backend Transformers."""
    model = _resolved(directory, "sources[a].model")
    tokenizer = tokenizer_of(model, field="sources[a]")
    check_source(model, tokenizer, "Transformers", None)
    context_length(model)
    stops = stop_token_ids(tokenizer, model, end_of_turn_id(tokenizer))
    settings = SamplerSettings(temperature=0.0, top_p=1.0, max_tokens=2, stop_token_ids=tuple(stops))
    sampler = make_sampler("Transformers", model, tokenizer, settings)
    list(sampler.sample([SampleRequest(key="a", prompt_token_ids=[5, 6], num_samples=1, seed=0)]))


def score(directory: Path) -> None:
    """Load as the score stage does."""
    RewardScorer(_resolved(directory, "reward.model"), max_length=64, batch_tokens=256).score([("a", "b")])


def train(directory: Path) -> None:
    """Load as a training stage does, the rehearsal of its export included."""
    base = _resolved(directory, "target.model")
    params = TrainParams(model=ModelRef(name=str(directory)), learning_rate=1e-6, precision="float32")
    tokenizer = tokenizer_of(base, field="target")
    check_trainable(base, tokenizer)
    length_bound(params, base)
    generation_stops(base)
    store = VolumeStore(directory.parent / "storage", lambda: NOON)
    output = store.writer(ArtifactRef(stage="train", hash="0" * 16), config={}, inputs={})
    rehearse_export(output, trained_model(base, params, tokenizer, {}), base)
    load_causal_lm(directory, precision="float32", gradient_checkpointing=False, trust_remote_code=False)
