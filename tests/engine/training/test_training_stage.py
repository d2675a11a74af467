"""The stages `sft` and `train` in this interpreter: from artifacts to a committed model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from training_support import FAST, plain_backend, sft_frame, triples_frame

from wrpo_engine.errors import ConfigError, DataError, Interrupted
from wrpo_engine.hub.model_digest import model_digest
from wrpo_engine.stage import StopRequest
from wrpo_engine.training import session, sources, stage
from wrpo_engine.training.data import planning
from wrpo_engine.training.monitoring.callbacks import Observer


@pytest.fixture(autouse=True)
def _without_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "make_backend", plain_backend)


@pytest.fixture
def context(make_ctx: Callable[..., Any], commit_artifact: Callable[..., Any], training_model_dir: Path) -> Any:
    """`context("train", frame, objective=...)`."""

    def make(kind: str, frame: pl.DataFrame, *, stop: StopRequest | None = None, **settings: Any) -> Any:
        role, upstream, name = {
            "sft": ("sft-rows", "curate-sft", "rows.parquet"),
            "train": ("triples", "curate-triples", "triples.parquet"),
        }[kind]
        ref = commit_artifact(upstream, {name: frame})
        params = {"stage": kind, "model": {"name": str(training_model_dir)}, **FAST, **settings}
        return make_ctx(params, {role: ref}, runtime={"micro_batch_tokens": 400}, stop=stop)

    return make


def test_sft_commits_a_model_metrics_and_a_card(context: Any) -> None:
    ctx = context("sft", sft_frame())
    result = stage.run_sft(ctx)
    artifact = ctx.output.committed()
    assert (result.rows, result.step) == (11, 6)
    assert artifact.files() == [
        "README.md",
        "metrics.jsonl",
        "model/README.md",
        "model/chat_template.jinja",
        "model/config.json",
        "model/generation_config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
    ]
    assert artifact.manifest.details["dropped"] == {}
    assert artifact.manifest.metrics["loss"] == result.metrics["loss"]


def test_what_only_a_resumed_run_needs_is_removed_after_the_commit(context: Any) -> None:
    ctx = context("train", triples_frame())
    stage.run_train(ctx)
    left = sorted(path.name for path in ctx.output.directory.iterdir())
    assert left == ["README.md", "manifest.json", "metrics.jsonl", "model", "tensorboard"]


def test_the_card_names_inputs_parameters_and_what_was_dropped(context: Any) -> None:
    frame = triples_frame().with_columns(
        prompt=pl.when(pl.col("prompt_id") == "prompt-03").then(pl.lit("w" * 300)).otherwise(pl.col("prompt"))
    )
    ctx = context("train", frame, beta=0.2)
    stage.run_train(ctx)
    card = (ctx.output.directory / "README.md").read_text()
    assert "# WRPO-DPO model of tests/tiny" in card
    assert "| beta | 0.2 |" in card
    assert "| dropped: prompt longer than maxPromptLength | 1 |" in card
    assert f"`curate-triples/0123456789abcdef (sha256 {ctx.input('triples').digest})`" in card


def test_baselines_train_on_pairs_of_the_same_triples(context: Any) -> None:
    ctx = context("train", triples_frame(has_source=False), objective="DPO", beta=0.1)
    result = stage.run_train(ctx)
    assert "rewards_chosen" in result.metrics
    assert "alpha" not in result.metrics


def test_fewer_rows_than_the_global_batch_train_and_say_so(context: Any, caplog: pytest.LogCaptureFixture) -> None:
    result = stage.run_train(context("train", triples_frame(3), global_batch_size=128))
    assert result.step == 2
    assert "3 rows are fewer than globalBatchSize 128: every step uses all rows" in caplog.text


def test_no_rows_is_an_error_and_nothing_is_committed(context: Any) -> None:
    ctx = context("sft", sft_frame(0))
    with pytest.raises(DataError, match="curate-sft/0123456789abcdef holds no rows to train on"):
        stage.run_sft(ctx)
    assert ctx.output.committed() is None


def test_triples_without_sources_do_not_fit_wrpo(context: Any) -> None:
    ctx = context("train", triples_frame(has_source=False))
    with pytest.raises(DataError, match="lack one of prompt_id, prompt, source_chosen") as caught:
        stage.run_train(ctx)
    assert caught.value.field == "training.objective"


def test_a_setting_without_effect_stops_before_any_model_is_loaded(context: Any) -> None:
    ctx = context("train", triples_frame(), objective="IPO", label_smoothing=0.1)
    with pytest.raises(ConfigError, match=r"training.labelSmoothing is 0.1"):
        stage.run_train(ctx)


def test_a_model_that_does_not_exist_is_named(context: Any) -> None:
    ctx = context("sft", sft_frame(), model={"name": "/no/such/model"})
    with pytest.raises(ConfigError, match="there is no directory /no/such/model"):
        stage.run_sft(ctx)


def test_a_stop_before_the_first_step_is_no_failure(context: Any) -> None:
    stop = StopRequest()
    stop.request()
    ctx = context("train", triples_frame(), stop=stop)
    with pytest.raises(Interrupted):
        stage.run_train(ctx)
    assert ctx.output.committed() is None


class StopAfterTheFirstStep(Observer):
    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop

    def on_micro_batch(self, step: int, row_ids: Any) -> None:
        self._stop.request()


@pytest.mark.parametrize("reference", ["cached", "in-memory"])
def test_a_model_that_changes_while_a_run_is_interrupted_is_found(
    reference: str, context: Any, training_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, stop = Path(shutil.copytree(training_model_dir, tmp_path / "model")), StopRequest()
    ctx = context("train", triples_frame(), stop=stop, model={"name": str(model)})
    ctx.config = ctx.config.model_copy(
        update={"runtime": ctx.config.runtime.model_copy(update={"reference": reference})}
    )
    monkeypatch.setattr(session, "make_observers", lambda *_: (StopAfterTheFirstStep(stop),))
    with pytest.raises(Interrupted, match="after step 1 of 6"):
        stage.run_train(ctx)
    stop._requested = False
    before = model_digest(model)
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "rms_norm_eps": 1e-3}))
    with pytest.raises(DataError) as caught:
        stage.run_train(ctx)
    assert str(caught.value) == (
        f"the checkpoint after step 1 belongs to the model with the digest {before}, but the model in {model} now has "
        f"the digest {model_digest(model)}: the policy would be trained from one model and compared with the other"
    )
    assert caught.value.hint == (
        "Restore the previous weights to resume, or remove the unfinished artifact train/0123456789abcdef to train "
        "from step 0."
    )
    (model / "config.json").write_bytes((training_model_dir / "config.json").read_bytes())
    with pytest.raises(Interrupted, match="after step 2 of 6"):
        stage.run_train(ctx)


def test_a_resumed_run_does_not_tokenise_again(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopRequest()
    stop.request()
    ctx = context("train", triples_frame(), stop=stop)
    with pytest.raises(Interrupted):
        stage.run_train(ctx)
    monkeypatch.setattr(sources, "tokenize_rows", None)
    stop._requested = False
    assert stage.run_train(ctx).step == 6


def test_a_cpu_takes_no_more_tokens_at_a_time_than_are_of_use() -> None:
    assert [planning.micro_batch_tokens(bound) for bound in (1, 400, 8192)] == [1, 400, 1024]


def lower_casing(directory: Path, to: Path) -> Path:
    """Copy a model with a tokenizer that makes letters small."""
    shutil.copytree(directory, to)
    file = to / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "normalizer": {"type": "Lowercase"}}))
    return to


def test_what_is_not_trained_as_written_is_in_manifest_card_and_log(
    context: Any, training_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = lower_casing(training_model_dir, tmp_path / "lower")
    frame = triples_frame().with_columns(
        rejected=pl.when(pl.col("prompt_id") == "prompt-03").then(pl.lit("No <|im_end|>")).otherwise(pl.col("rejected"))
    )
    ctx = context("train", frame, model={"name": str(model)})
    with caplog.at_level("INFO", "wrpo_engine"):
        stage.run_train(ctx)
    manifest = ctx.output.committed().manifest
    reason = "letter case, accents, white space or compatibility characters"
    assert manifest.details["changed"] == {reason: 1}
    assert manifest.details["control_text_rows"] == 1
    assert manifest.metrics["changed_rows"] == 1
    assert f"| changed by the tokenizer: {reason} | 1 |" in (ctx.output.directory / "README.md").read_text()
    assert (
        "11 rows, 0 responses cut to maxLength, dropped: none, changed by the tokenizer: "
        f"{{'{reason}': 1}}, with control tokens as text: 1" in caplog.messages
    )


def test_too_many_rows_that_would_not_be_trained_as_written_end_the_stage(
    context: Any, training_model_dir: Path, tmp_path: Path
) -> None:
    model = lower_casing(training_model_dir, tmp_path / "lower")
    ctx = context("sft", sft_frame().with_columns(response=pl.lit("Yes.")), model={"name": str(model)})
    with pytest.raises(DataError, match=r"11 of 11 rows of curate-sft/0123456789abcdef \(100.0%\)") as error:
        stage.run_sft(ctx)
    assert (error.value.code, error.value.field) == ("ResponsesChanged", "target.model")
    assert ctx.output.committed() is None
