"""Faults that are known at the start end a run at its start; a model that can be exported is exported unchanged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from engine_support import make_tokenizer, save_tiny_model
from training_support import FAST, FAST_ON_IDS, plain_backend, triples_frame

from wrpo_engine.errors import ConfigError, DataError, StorageError
from wrpo_engine.hub.models import ResolvedModel, generation_stops
from wrpo_engine.training import session, stage
from wrpo_engine.training.models.model import load_causal_lm


@pytest.fixture(autouse=True)
def _without_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "make_backend", plain_backend)


@pytest.fixture
def context(make_ctx: Callable[..., Any], commit_artifact: Callable[..., Any]) -> Any:
    def make(model: Path, frame: pl.DataFrame | None = None, **settings: Any) -> Any:
        ref = commit_artifact("curate-triples", {"triples.parquet": triples_frame() if frame is None else frame})
        params = {"stage": "train", "model": {"name": str(model)}, **FAST, **settings}
        return make_ctx(params, {"triples": ref}, runtime={"micro_batch_tokens": 400})

    return make


@pytest.fixture
def no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(session, "make_backend", load)


@pytest.mark.parametrize(
    "content", ['{"length_penalty": 0.5}', '{"pad_token_id": -1}', '{"temperature": 0.6, "top_p": 0.9}']
)
def test_a_generation_config_that_transformers_does_not_write_is_exported_as_it_is(
    content: str, context: Any, tmp_path: Path
) -> None:
    model = save_tiny_model(tmp_path / "model")
    (model / "generation_config.json").write_text(content)
    ctx = context(model)
    stage.run_train(ctx)
    exported = ctx.output.committed().directory / "model"
    assert (exported / "generation_config.json").read_text() == content
    shutil.rmtree(model)
    # The next stage reads what was exported.
    assert generation_stops(ResolvedModel(exported, "exported", None)) == set()
    load_causal_lm(exported, precision="float32", gradient_checkpointing=False, trust_remote_code=False)


@pytest.mark.usefixtures("no_step")
def test_a_config_that_cannot_be_written_again_ends_the_run_at_its_start(
    context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny_model(tmp_path / "model")

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("`top_k` cannot be saved")

    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", refuse)
    ctx = context(model)
    with pytest.raises(ConfigError) as error:
        stage.run_train(ctx)
    assert error.value.code == "ExportImpossible"
    assert error.value.message == (
        f"target.model is '{model}': the model could not be saved after training: `top_k` cannot be saved"
    )
    assert [path.name for path in ctx.output.directory.glob(".tmp*")] == []


@pytest.mark.usefixtures("no_step")
def test_an_output_without_room_for_the_model_ends_the_run_at_its_start(
    context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = context(save_tiny_model(tmp_path / "model"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(StorageError, match=r"the trained model takes 0\.00 GiB, but .* has 0\.00 GiB free"):
        stage.run_train(ctx)


@pytest.mark.usefixtures("no_step")
def test_adapters_are_merged_once_before_the_first_step(context: Any, tmp_path: Path) -> None:
    ctx = context(save_tiny_model(tmp_path / "model"), lora={"target_modules": ["nosuch"]})
    with pytest.raises(ConfigError, match="nosuch"):
        stage.run_train(ctx)
    with pytest.raises(AssertionError, match="a model is loaded"):
        stage.run_train(context(save_tiny_model(tmp_path / "model"), lora={"target_modules": ["q_proj"]}))


@pytest.mark.usefixtures("no_step")
def test_a_chosen_length_above_the_context_is_refused_with_both_numbers(context: Any, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", context=64)
    with pytest.raises(ConfigError) as error:
        stage.run_train(context(model, max_length=65))
    assert error.value.message == f"training.maxLength is 65: the context of {model} holds 64 tokens"
    assert error.value.hint == "Set it to at most 64, or use a model with a longer context."


def test_the_default_length_is_lowered_to_the_context_and_what_is_cut_is_counted(
    context: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = save_tiny_model(tmp_path / "model", context=64)
    with caplog.at_level("WARNING", "wrpo_engine"):
        ctx = context(model, max_length=2048)
        stage.run_train(ctx)
    details = ctx.output.committed().manifest.details
    assert details["truncated_responses"] > 0
    assert "rows are cut to 64 tokens, not to maxLength 2048: the model's context is shorter" in caplog.messages


def test_learned_positions_train_within_their_table_and_no_row_that_fits_is_refused(
    context: Any, tmp_path: Path
) -> None:
    ctx = context(save_learned(tmp_path / "model", positions=64), max_length=2048)
    assert (stage.run_train(ctx).step or 0) > 0


@pytest.mark.usefixtures("no_step")
def test_rows_that_all_exceed_the_context_name_it(context: Any, tmp_path: Path) -> None:
    model = save_learned(tmp_path / "model", positions=8)
    with pytest.raises(DataError, match=r"none of the 11 rows .* fits the context of .*, which holds 8 tokens"):
        stage.run_train(context(model, max_length=2048))


@pytest.mark.usefixtures("no_step")
def test_token_ids_beyond_the_context_are_refused_by_row(context: Any, tmp_path: Path, make_ctx: Any) -> None:
    model = save_tiny_model(tmp_path / "model", context=16)
    rows = tmp_path / "rows.parquet"
    names = ("prompt_ids", "source_chosen_ids", "target_chosen_ids", "rejected_ids")
    pl.DataFrame({name: [[3] * 4, [3] * (4 if name == "prompt_ids" else 13)] for name in names}).write_parquet(rows)
    params = {"stage": "train", "model": {"name": str(model)}, **FAST_ON_IDS, "tokenized_triples": str(rows)}
    with pytest.raises(DataError) as error:
        stage.run_train(make_ctx(params, {}))
    assert error.value.message == (
        f"row 1 of {rows} has 17 tokens with its longest response, but the context of {model} holds 16"
    )


def save_learned(directory: Path, *, positions: int) -> Path:
    import transformers

    words = make_tokenizer()
    config = transformers.GPT2Config(
        vocab_size=len(words), n_embd=32, n_layer=2, n_head=4, n_positions=positions, bos_token_id=None
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(directory)
    words.save_pretrained(directory)
    assert json.loads((directory / "config.json").read_text())["n_positions"] == positions
    return directory
