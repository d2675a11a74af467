"""Held-out rows: never trained on, evaluated equally after every interruption, early stopping."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_support import EXPERIMENT_HASH
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from training_support import FAST, make_experiment, plain_backend, run_ranks, sft_frame, start_ranks, triples_frame

from wrpo_engine.config import HoldoutParams, TerminationMessage
from wrpo_engine.errors import ConfigError, Interrupted
from wrpo_engine.process.termination import encode
from wrpo_engine.stage import StopRequest
from wrpo_engine.training import loop, session, stage
from wrpo_engine.training.data.holdout import EvaluationHistory, split_rows
from wrpo_engine.training.monitoring.callbacks import Observer
from wrpo_operator.plan.progress import bounded_metrics

LONG = {"epochs": 4, "holdout": {"fraction": 0.3, "every_steps": 2}}
"""Eleven rows, three of them held out: two steps an epoch, evaluations after steps 2, 4, 6 and 8."""


@given(num_rows=st.integers(2, 300), fraction=st.floats(0.01, 0.6), seed=st.integers(0, 2**32))
def test_every_row_is_either_trained_on_or_held_out(num_rows: int, fraction: float, seed: int) -> None:
    params = HoldoutParams(fraction=fraction)
    trained, held_out = split_rows(num_rows, params, seed)
    assert sorted(trained + held_out) == list(range(num_rows))
    assert (trained, held_out) == (sorted(trained), sorted(held_out))
    assert len(held_out) == max(1, round(num_rows * fraction))
    assert split_rows(num_rows, params, seed) == (trained, held_out)


def test_another_seed_holds_out_other_rows() -> None:
    assert len({tuple(split_rows(100, HoldoutParams(), seed)[1]) for seed in range(20)}) == 20


def test_one_row_cannot_be_held_out_of_one() -> None:
    with pytest.raises(ConfigError, match=r"training.holdout.fraction is 0.05: of 1 rows none would be left"):
        split_rows(1, HoldoutParams(), 0)


PATIENCE = {
    "every loss better": ([5, 4, 3, 2], 1, [False] * 4, 4),
    "one worse stops with 1": ([5, 4, 4.5], 1, [False, False, True], 2),
    "an equal one is not better": ([5, 5], 1, [False, True], 1),
    "a better one resets the count": ([5, 6, 4, 5, 5], 2, [False, False, False, False, True], 3),
    "without a limit never": ([5, 6, 7, 8], None, [False] * 4, 1),
}


@pytest.mark.parametrize(("losses", "patience", "ends", "best"), PATIENCE.values(), ids=PATIENCE.keys())
def test_when_training_ends_early(losses: list[float], patience: int | None, ends: list[bool], best: int) -> None:
    history = EvaluationHistory(HoldoutParams(patience=patience))
    seen = []
    for step, loss in enumerate(losses, 1):
        history.add(step, loss)
        seen.append(history.ends_training)
    assert seen == ends
    assert history.best_step == best
    restored = EvaluationHistory(HoldoutParams(patience=patience))
    restored.restore(json.loads(json.dumps(history.state())))
    assert restored == history


class Recorder(Observer):
    """Remembers which rows were trained on, and stops the run after a step."""

    def __init__(self, stop: StopRequest, stop_after: int | None, stop_in_evaluation: int | None) -> None:
        self.rows: set[str] = set()
        self.held_out: set[str] = set()
        self.evaluated: list[int] = []
        """The step of every micro-batch of held-out rows."""
        self._stop, self._stop_after, self._stop_in_evaluation = stop, stop_after, stop_in_evaluation

    def on_held_out_micro_batch(self, step: int, row_ids: Any) -> None:
        self.held_out.update(row_ids)
        self.evaluated.append(step)
        if step == self._stop_in_evaluation:
            self._stop.request()

    def on_micro_batch(self, step: int, row_ids: Any) -> None:
        self.rows.update(row_ids)
        # Seen at the end of this step.
        if self._stop_after is not None and step + 1 >= self._stop_after:
            self._stop.request()


@pytest.fixture
def recorders() -> dict[str, Recorder]:
    """Those of the runs by name, also of runs that were stopped."""
    return {}


@pytest.fixture
def held_out_run(
    make_ctx: Any,
    commit_artifact: Any,
    training_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recorders: dict[str, Recorder],
) -> Callable[..., Any]:
    """`held_out_run("name", stop_after=3, ...)`: the train stage with holdout; returns (result, context, recorder)."""
    monkeypatch.setattr(session, "make_backend", plain_backend)
    own = session.make_observers

    def run(
        name: str,
        *,
        stage_kind: str = "train",
        stop_after: int | None = None,
        stop_in_evaluation: int | None = None,
        micro_batch_tokens: int = 400,
        **settings: Any,
    ) -> Any:
        root, stop = tmp_path / name, StopRequest()
        kind = {
            "train": ("curate-triples", "triples.parquet", triples_frame),
            "sft": ("curate-sft", "rows.parquet", sft_frame),
        }
        upstream, file, frame = kind[stage_kind]
        ref = commit_artifact(upstream, {file: frame()}, root=root)
        params = {"stage": stage_kind, "model": {"name": str(training_model_dir)}, **FAST, **LONG, **settings}
        role = "triples" if stage_kind == "train" else "sft-rows"
        runtime = {"micro_batch_tokens": micro_batch_tokens, "checkpoint_every_steps": 3}
        ctx = make_ctx(params, {role: ref}, runtime=runtime, root=root, stop=stop)
        recorder = recorders[name] = Recorder(stop, stop_after, stop_in_evaluation)
        monkeypatch.setattr(session, "make_observers", lambda *arguments: (*own(*arguments), recorder))
        function = stage.run_train if stage_kind == "train" else stage.run_sft
        return function(ctx), ctx, recorder

    return run


def evaluations(ctx: Any) -> list[dict[str, float]]:
    return [json.loads(line) for line in (ctx.output.directory / "eval.jsonl").read_text().splitlines()]


def weights(ctx: Any) -> dict[str, torch.Tensor]:
    return load_file(ctx.output.directory / "model" / "model.safetensors")


def test_held_out_rows_are_never_trained_on_and_are_evaluated(held_out_run: Any) -> None:
    result, ctx, recorder = held_out_run("run", objective="WRPO-DPO", beta=0.1)
    trained, held_out = split_rows(11, HoldoutParams(fraction=0.3), 42)
    assert recorder.rows == {f"prompt-{index:02d}" for index in trained}
    assert recorder.held_out == {f"prompt-{index:02d}" for index in held_out}
    rows = evaluations(ctx)
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert {row["num_rows"] for row in rows} == {len(held_out)} == {3}
    assert {"loss", "margin", "accuracy_source", "accuracy_target", "accuracy_source_over_target"} <= rows[0].keys()
    assert {row["alpha"] for row in rows} == {0.1}, "one function for all evaluations: alpha at its maximum"
    assert result.metrics["eval_loss"] == rows[-1]["loss"]
    assert result.metrics["eval_step"] == 8
    artifact = ctx.output.committed()
    assert "eval.jsonl" in artifact.files()
    assert artifact.manifest.details["held_out_rows"] == 3


def test_the_fullest_outcome_reaches_the_status_whole(held_out_run: Any) -> None:
    """Termination message and status hold a bounded number of metrics; none is cut off, least `reward_divergence`."""
    result, _, _ = held_out_run("run", objective="WRPO-DPO", beta=0.1)
    message = TerminationMessage(outcome="Succeeded", rows=result.rows, metrics=result.metrics, artifact="a" * 64)
    read = TerminationMessage.model_validate_json(encode(message)).metrics
    assert read == result.metrics
    assert bounded_metrics(read | {"rows": 11.0}).keys() == read.keys() | {"rows"}
    assert read["reward_divergence"] == 0.0


def test_without_a_step_the_held_out_margin_would_be_zero(held_out_run: Any) -> None:
    """The reference of held-out rows is that of the others: a learning rate of nearly nothing leaves ln 2."""
    _, ctx, _ = held_out_run("run", beta=0.1, learning_rate=1e-30)
    for row in evaluations(ctx):
        assert row["loss"] == pytest.approx(0.6931471805599453, abs=1e-6)
        assert row["margin"] == pytest.approx(0, abs=1e-6)


def test_sft_evaluates_the_mean_over_held_out_tokens(held_out_run: Any) -> None:
    result, ctx, _ = held_out_run("run", stage_kind="sft")
    rows = evaluations(ctx)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["loss"] == pytest.approx(-rows[-1]["logps"] / rows[-1]["lengths"], rel=1e-6)
    assert result.metrics["eval_loss"] == rows[-1]["loss"]


HARMFUL = {"learning_rate": 0.1, "lr_scheduler_type": "constant", "warmup_ratio": 0.0, "beta": 1.0, "epochs": 8}
"""The held-out loss gets worse and worse."""


def test_patience_ends_training_and_the_best_checkpoint_is_exported(held_out_run: Any, tmp_path: Path) -> None:
    holdout = {"fraction": 0.3, "every_steps": 1, "patience": 3, "keep_best": True}
    result, ctx, _ = held_out_run("run", **HARMFUL, holdout=holdout)
    rows = evaluations(ctx)
    losses = {int(row["step"]): row["loss"] for row in rows}
    best = min(losses, key=lambda step: (losses[step], step))
    assert result.step == max(losses) == best + 3 < 16
    details = ctx.output.committed().manifest.details
    assert (details["step"], details["exported_step"]) == (best + 3, best)
    assert (result.metrics["eval_step"], result.metrics["eval_loss"]) == (best, losses[best])
    with pytest.raises(Interrupted):
        held_out_run("stopped", stop_after=best, **HARMFUL, holdout=holdout)
    saved = load_file(
        tmp_path / "stopped" / f"train/{EXPERIMENT_HASH}/checkpoints/step-{best:08d}/rank-00000.safetensors"
    )
    for name, tensor in weights(ctx).items():
        assert torch.equal(saved[f"weight/{name}"], tensor), name


@pytest.mark.parametrize("stop_after", [2, 5])
def test_a_stopped_run_evaluates_and_chooses_as_an_uninterrupted_one(stop_after: int, held_out_run: Any) -> None:
    settings = HARMFUL | {"holdout": {"fraction": 0.3, "every_steps": 2, "patience": 3, "keep_best": True}}
    whole, whole_ctx, _ = held_out_run("whole", **settings)
    with pytest.raises(Interrupted):
        held_out_run("broken", stop_after=stop_after, **settings)
    broken, broken_ctx, _ = held_out_run("broken", **settings)
    assert evaluations(broken_ctx) == evaluations(whole_ctx)
    assert (broken.step, broken_ctx.output.committed().manifest.details["exported_step"]) == (
        whole.step,
        whole_ctx.output.committed().manifest.details["exported_step"],
    )
    for name, tensor in weights(whole_ctx).items():
        assert torch.equal(weights(broken_ctx)[name], tensor), name


def assert_same_choice(ours: Any, theirs: Any) -> None:
    """Of (result, context): the same evaluations, the same last and exported step, the same weights."""
    assert evaluations(ours[1]) == evaluations(theirs[1])
    details, expected = (ctx.output.committed().manifest.details for _, ctx in (ours, theirs))
    assert (details["step"], details["exported_step"]) == (expected["step"], expected["exported_step"])
    for name, tensor in weights(theirs[1]).items():
        assert torch.equal(weights(ours[1])[name], tensor), name


LAST = {**LONG, "beta": 0.1, "holdout": {"fraction": 0.3, "every_steps": 2, "keep_best": True}}
"""Every evaluation better than the one before: the last one decides what is exported."""
WORSE = HARMFUL | {"holdout": {"fraction": 0.3, "every_steps": 2, "patience": 2, "keep_best": True}}
IN_EVALUATIONS = {
    "the first, which is the best": (WORSE, 2),
    "one that is worse": (WORSE, 4),
    "the one that ends training": (WORSE, 6),
    "the one after the last step": (LAST, 8),
}


@pytest.mark.parametrize(("settings", "step"), IN_EVALUATIONS.values(), ids=IN_EVALUATIONS.keys())
def test_a_stop_during_an_evaluation_does_not_wait_for_the_rest_of_it(
    settings: dict[str, Any], step: int, held_out_run: Any, recorders: dict[str, Recorder], tmp_path: Path
) -> None:
    whole = held_out_run("whole", micro_batch_tokens=1, **settings)[:2]
    with pytest.raises(Interrupted, match=f"^stopped on request after step {step} of "):
        held_out_run("broken", stop_in_evaluation=step, micro_batch_tokens=1, **settings)
    assert recorders["whole"].evaluated.count(step) == 3
    assert recorders["broken"].evaluated.count(step) == 1
    # Stopped again before the evaluation it begins with is complete: nothing is lost by that either.
    with pytest.raises(Interrupted, match=f"^stopped on request after step {step} of "):
        held_out_run("broken", stop_in_evaluation=step, micro_batch_tokens=1, **settings)
    marker = tmp_path / "broken" / f"train/{EXPERIMENT_HASH}/checkpoints/step-{step:08d}/checkpoint.json"
    assert json.loads(marker.read_text())["state"]["evaluation_due"] is True
    broken = held_out_run("broken", micro_batch_tokens=1, **settings)[:2]
    assert_same_choice(broken, whole)


def test_a_kill_after_a_made_up_evaluation_loses_no_decision(
    held_out_run: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The checkpoint that was continued from has been marked as the best; its own state does not know that yet."""
    settings = LAST | {"holdout": {"fraction": 0.3, "every_steps": 1, "keep_best": True}}
    whole = held_out_run("whole", **settings)[:2]
    with pytest.raises(Interrupted):
        held_out_run("broken", stop_in_evaluation=4, **settings)
    step = loop._step
    monkeypatch.setattr(loop, "_step", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
    with pytest.raises(RuntimeError, match="killed"):
        held_out_run("broken", **settings)
    monkeypatch.setattr(loop, "_step", step)
    assert_same_choice(held_out_run("broken", **settings)[:2], whole)
    assert "is lost" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_sharded_weights_of_the_best_step_are_exported(zero_stage: int, held_out_run: Any, tmp_path: Path) -> None:
    """At stage 3 with weight decay, so that the optimizer has two groups of parameters to restore."""
    holdout = {"fraction": 0.3, "every_steps": 1, "keep_best": True}
    settings = HARMFUL | {"zero_stage": zero_stage, "weight_decay": 0.1 * (zero_stage == 3), "holdout": holdout}
    _, ctx, _ = held_out_run("alone", **settings)
    experiment = make_experiment(tmp_path / "ranks")
    run_ranks(experiment, experiment.config({"stage": "train", **LONG, **settings}), world_size=2)
    manifest = json.loads((experiment.output("train") / "manifest.json").read_text())
    details = ctx.output.committed().manifest.details
    assert manifest["details"]["exported_step"] == details["exported_step"] < manifest["details"]["step"] == 16
    for name, tensor in weights(ctx).items():
        torch.testing.assert_close(experiment.weights("train")[name], tensor, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_all_ranks_leave_an_evaluation_when_one_is_asked_to_stop(tmp_path: Path) -> None:
    settings = {"stage": "train", "zero_stage": 1, "beta": 0.1, **LONG, "holdout": {"fraction": 0.4, "every_steps": 2}}
    whole, broken = make_experiment(tmp_path / "whole"), make_experiment(tmp_path / "broken")
    run_ranks(whole, whole.config(settings, {"micro_batch_tokens": 1}), world_size=2)
    config = broken.config(settings, {"micro_batch_tokens": 1})
    gang = start_ranks(broken, config, world_size=2, faults={1: "be_asked_to_stop_in_the_first_evaluation"})
    assert gang.wait() == [143, 143], gang.text()
    assert not (broken.output("train") / "eval.jsonl").exists()
    marker = broken.output("train") / "checkpoints/step-00000002/checkpoint.json"
    assert json.loads(marker.read_text())["state"]["evaluation_due"] is True
    run_ranks(broken, config, world_size=2)
    files = [experiment.output("train") / "eval.jsonl" for experiment in (broken, whole)]
    assert files[0].read_text() == files[1].read_text()
    for name, tensor in whole.weights("train").items():
        assert torch.equal(broken.weights("train")[name], tensor), name
