"""The fusion loss: sparse soft targets inside the chunked head, and SFT with them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from engine_support import EXPERIMENT_HASH, NOON
from support.head_logps import head_logps
from torch import Tensor
from training_support import FAST, Experiment, make_experiment, plain_backend, run_ranks, sft_frame

from wrpo_engine.artifacts import VolumeStore, records
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import ConfigError, DataError, Interrupted
from wrpo_engine.stage import StopRequest
from wrpo_engine.training import session, stage
from wrpo_engine.training.batch.collate import collate
from wrpo_engine.training.batch.layout import Layout
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.batch.soft import FusedRow, SoftTargets, mixed_targets
from wrpo_engine.training.models.logps import HeadScaling, TokenLogps

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "comparisons"
TOKENS, HIDDEN, VOCABULARY, KEPT_IDS = 37, 8, 53, 5
SCALINGS = {"plain": HeadScaling(), "scaled and soft-capped": HeadScaling(scale=1.5, softcap=2.0)}


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def _head() -> tuple[Tensor, Tensor, Tensor, Tensor, SoftTargets]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(TOKENS, HIDDEN, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, dtype=torch.float64, generator=generator).requires_grad_()
    bias = torch.randn(VOCABULARY, dtype=torch.float64, generator=generator).requires_grad_()
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    ids = torch.stack([torch.randperm(VOCABULARY, generator=generator)[:KEPT_IDS] for _ in range(TOKENS)])
    weights = torch.rand(TOKENS, KEPT_IDS, dtype=torch.float64, generator=generator)
    return hidden, weight, bias, targets, SoftTargets(ids, weights / weights.sum(-1, keepdim=True))


def _dense(soft: SoftTargets) -> Tensor:
    dense = torch.zeros(len(soft.ids_RK), VOCABULARY, dtype=soft.weights_RK.dtype)
    return dense.scatter_add(-1, soft.ids_RK, soft.weights_RK)


@pytest.mark.parametrize("trains_head", [True, False])
@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS.keys())
@pytest.mark.parametrize(("chunk", "kept_bytes"), [(1, 0), (5, 17 * VOCABULARY * 8), (1000, 10**9)])
def test_sparse_targets_give_the_values_and_gradients_of_dense_ones(
    chunk: int, kept_bytes: int, scaling: HeadScaling, *, trains_head: bool
) -> None:
    hidden, weight, bias, targets, soft = _head()
    trained = (hidden, weight, bias) if trains_head else (hidden,)
    if not trains_head:
        weight, bias = weight.detach(), bias.detach()
    found = head_logps(
        hidden, weight, targets, bias=bias, scaling=scaling, chunk=chunk, kept_bytes=kept_bytes, soft=soft
    )
    logits = (hidden @ weight.T + bias) * scaling.scale
    if scaling.softcap is not None:
        logits = scaling.softcap * torch.tanh(logits / scaling.softcap)
    logps = torch.log_softmax(logits, dim=-1)
    theirs = (logps * _dense(soft)).sum(-1)
    torch.testing.assert_close(found.logps_R, theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.labels_R, logps.gather(-1, targets[:, None])[:, 0].detach(), rtol=0, atol=1e-12)
    assert not found.labels_R.requires_grad
    upstream = torch.linspace(-1, 2, TOKENS, dtype=torch.float64)
    ours = torch.autograd.grad(found.logps_R, trained, upstream)
    for our, their in zip(ours, torch.autograd.grad(theirs, trained, upstream), strict=True):
        torch.testing.assert_close(our, their, rtol=0, atol=1e-11)


def test_soft_targets_for_another_number_of_tokens_are_refused() -> None:
    hidden, weight, _, targets, soft = _head()
    with pytest.raises(ValueError, match=r"need soft targets \[R, K\] of 37 tokens; got ids \(36, 5\)"):
        head_logps(hidden, weight, targets, soft=soft[: TOKENS - 1])


def _mixed(probabilities: Tensor, labels: Tensor, weight: float) -> SoftTargets:
    """Targets over the whole vocabulary."""
    ids = np.tile(np.arange(probabilities.shape[-1], dtype=np.int32), (len(labels), 1))
    return mixed_targets([FusedRow(ids, probabilities.numpy(), weight)], labels)


def _through_an_identity_head(logits: Tensor, labels: Tensor, soft: SoftTargets) -> TokenLogps:
    return head_logps(logits, torch.eye(logits.shape[-1], dtype=logits.dtype), labels, soft=soft)


def test_the_sparse_losses_of_fusellm_are_met() -> None:
    case = golden("fusellm")["sparse_loss"]
    width = max(map(len, case["kept_indices"]))
    ids = torch.zeros(len(case["loss"]), width, dtype=torch.long)
    weights = torch.zeros(len(case["loss"]), width)
    for row, (kept, logits) in enumerate(zip(case["kept_indices"], case["kept_logits"], strict=True)):
        ids[row, : len(kept)] = torch.tensor(kept)
        weights[row, : len(kept)] = torch.tensor(logits).softmax(-1)
    logits = torch.tensor(case["policy_logits"])
    found = _through_an_identity_head(logits, torch.zeros(len(ids), dtype=torch.long), SoftTargets(ids, weights))
    assert (-found.logps_R).tolist() == pytest.approx(case["loss"], abs=1e-5)
    assert (-found.logps_R).tolist() == pytest.approx(case["sparse"], abs=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.25, 1.0])
def test_fused_distributions_that_are_one_hot_on_the_labels_give_the_cross_entropy(weight: float) -> None:
    hidden, head, bias, targets, _ = _head()
    one_hot = torch.nn.functional.one_hot(targets, VOCABULARY)
    soft = _mixed(one_hot, targets, weight)
    found = head_logps(hidden, head, targets, bias=bias, soft=soft)
    torch.testing.assert_close(found.logps_R, head_logps(hidden, head, targets, bias=bias).logps_R, rtol=1e-6, atol=0)


@pytest.mark.parametrize("trains_head", [True, False])
def test_with_weight_0_values_and_gradients_are_those_of_sft_bit_for_bit(*, trains_head: bool) -> None:
    hidden, head, _, targets, soft = _head()
    fused = mixed_targets([FusedRow(soft.ids_RK.numpy(), soft.weights_RK.numpy(), 0.0)], targets)
    hidden = hidden.detach().float().requires_grad_()
    head = head.detach().float().requires_grad_(trains_head)
    for chunk, kept_bytes in ((5, 0), (5, 10**9)):
        options: dict[str, Any] = {"chunk": chunk, "kept_bytes": kept_bytes}
        plain = head_logps(hidden, head, targets, **options).logps_R
        mixed = head_logps(hidden, head, targets, soft=fused, **options).logps_R
        assert torch.equal(plain, mixed)
        trained = (hidden, head) if trains_head else (hidden,)
        upstream = torch.linspace(-1, 2, TOKENS)
        gradients = [torch.autograd.grad(values, trained, upstream) for values in (plain, mixed)]
        assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_no_id_has_two_places_in_a_target_and_its_weights_sum_to_1() -> None:
    fused = FusedRow(
        np.array([[4, 2], [1, 0]], dtype=np.int32), np.array([[0.75, 0.25], [1, 0]], dtype=np.float16), 0.5
    )
    soft = mixed_targets([fused], torch.tensor([2, 3]))
    assert soft.ids_RK.tolist() == [[4, 2, 2], [1, 0, 3]]
    assert soft.weights_RK.tolist() == [[0.375, 0.0, 0.625], [0.5, 0.0, 0.5]]


def test_a_row_with_another_number_of_distributions_is_refused() -> None:
    fused = FusedRow(np.zeros((2, 1), dtype=np.int32), np.ones((2, 1), dtype=np.float16), 0.1)
    with pytest.raises(ValueError, match=r"^row r: 2 fused distributions for 3 tokens with loss; each token "):
        TokenRow("r", (1,), ((1, 2, 3),), fused=fused)


def fused_rows(rows: list[TokenRow], *, weight: float, width: int = 4) -> list[TokenRow]:
    """Rows with random distributions over `width` ids."""
    generator = np.random.default_rng(5)
    return [
        replace(
            row,
            fused=FusedRow(
                np.stack([generator.permutation(200)[:width] for _ in range(row.num_loss_tokens)]).astype(np.int32),
                generator.dirichlet(np.ones(width), size=row.num_loss_tokens).astype(np.float16),
                weight,
            ),
        )
        for row in rows
    ]


FUSION = {"targets": "align/all", "weight": 0.25}


def fused_run(local_run: Any, name: str, *, run: dict[str, Any] | None = None, weight: float = 0.25) -> Any:
    made = local_run(name, stage="sft", fusion={**FUSION, "weight": weight}, run=run)
    made.rows = fused_rows(made.token_rows(), weight=weight)
    return made


def test_the_loss_is_normalised_over_the_label_tokens_of_the_global_batch(local_run: Any) -> None:
    exact = {"dtype": torch.float64}
    large = fused_run(local_run, "large", run=exact | {"micro_batch_tokens": 10**6})
    small = fused_run(local_run, "small", run=exact | {"micro_batch_tokens": 1})
    packed = fused_run(local_run, "packed", run=exact | {"layout": Layout.PACKED})
    for run in (large, small, packed):
        run.run()
    for other in (small, packed):
        for name, tensor in large.weights().items():
            torch.testing.assert_close(other.weights()[name], tensor, rtol=0, atol=1e-8)
    rows = [large.token_rows()[index] for index in large.plan().step_rows(0)]
    tokens = sum(row.num_loss_tokens for row in rows)
    logps = large.backend().frozen_sequence_logps(collate(rows))
    assert large.metrics()[0]["loss"] == pytest.approx(-logps[:, 0].sum().item() / tokens, abs=1e-9)
    mixed, labels = logps.sum(0).tolist()
    assert large.metrics()[0]["logps"] == pytest.approx(labels / len(rows))
    lengths = torch.tensor([float(row.num_loss_tokens) for row in rows], dtype=torch.float64)
    fused = -(logps[:, 0] - 0.75 * logps[:, 1]) / 0.25 / lengths
    assert large.metrics()[0]["fusion"] == pytest.approx(fused.mean().item())
    assert mixed != labels


def test_training_lowers_the_fusion_loss(local_run: Any) -> None:
    run = fused_run(local_run, "run", weight=1.0)
    run.run()
    losses = [row["fusion"] for row in run.metrics()]
    assert losses[-1] < losses[0]


def test_weight_0_trains_the_weights_of_sft_bit_for_bit(local_run: Any) -> None:
    plain, fused = local_run("plain", stage="sft"), fused_run(local_run, "fused", weight=0.0)
    plain.run()
    fused.run()
    assert fused.metrics() == plain.metrics()
    for name, tensor in plain.weights().items():
        assert torch.equal(fused.weights()[name], tensor)


def test_a_stopped_run_continues_bit_exactly(local_run: Any) -> None:
    whole = fused_run(local_run, "whole")
    whole.run()
    broken = fused_run(local_run, "broken", run={"stop_after": 3, "checkpoint_every_steps": 100})
    with pytest.raises(Interrupted, match=r"^stopped on request after step 3 of 6; "):
        broken.run()
    broken.stop_after = None
    broken.run()
    assert broken.metrics() == whole.metrics()
    for name, tensor in whole.weights().items():
        assert torch.equal(broken.weights()[name], tensor)


# The stage


def aligned_frame(tokens: list[TokenRow], *, width: int = 3) -> pl.DataFrame:
    fused = fused_rows(tokens, weight=1.0, width=width)
    return pl.DataFrame(
        {
            "row_id": [row.row_id for row in fused],
            "target_ids": [list(row.responses[0]) for row in fused],
            "fused_ids": [row.fused.ids_TK.tolist() for row in fused if row.fused],
            "fused_p": [row.fused.probabilities_TK.astype(np.float32).tolist() for row in fused if row.fused],
            "source": ["target"] * len(fused),
            "ce": [1.0] * len(fused),
            "one_hot_share": [0.0] * len(fused),
        },
        schema=records.ALIGNED,
    )


@pytest.fixture
def fusing(
    make_ctx: Any, commit_artifact: Any, training_model_dir: Path, local_run: Any, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """`fusing(change=frame -> frame, ...)` returns the context of SFT with an align artifact."""
    monkeypatch.setattr(session, "make_backend", plain_backend)

    def make(change: Any = lambda frame: frame, *, stop: Any = None, **settings: Any) -> Any:
        frame = change(aligned_frame(local_run("rows", stage="sft").token_rows()))
        half = frame.height // 2
        parts = {"parts/part-00000.parquet": frame[:half], "parts/part-00001.parquet": frame[half:]}
        inputs = {
            "sft-rows": commit_artifact("curate-sft", {"rows.parquet": sft_frame()}),
            "align/all": commit_artifact("align/all", parts, details={"top_k": 3}),
        }
        params = {"stage": "sft", "model": {"name": str(training_model_dir)}, **FAST, "fusion": FUSION, **settings}
        return make_ctx(params, inputs, runtime={"micro_batch_tokens": 400}, stop=stop)

    return make


SETTINGS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "adapters": {"lora": {"rank": 4}},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "held-out rows": {"holdout": {"fraction": 0.2, "every_steps": 2}},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_sft_trains_on_the_distributions_of_an_align_stage(settings: dict[str, Any], fusing: Any) -> None:
    ctx = fusing(**settings)
    result = stage.run_sft(ctx)
    assert result.metrics["fusion"] > 0
    assert ctx.output.committed() is not None
    assert not (ctx.output.directory / "tokens").exists()


def test_a_resumed_stage_reads_the_distributions_that_it_has_published(
    fusing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopRequest()
    stop.request()
    ctx = fusing(stop=stop)
    with pytest.raises(Interrupted):
        stage.run_sft(ctx)
    published = sorted(path.name for path in (ctx.output.directory / "tokens").iterdir())
    assert published[:2] == ["fused-ids.npy", "fused-probabilities.npy"]
    shutil.rmtree(tmp_path / "storage" / "align")
    stop._requested = False
    assert stage.run_sft(ctx).step == 6


def change_first(column: str, change: Any) -> Any:
    """A change of the first row's value in a column."""

    def applied(frame: pl.DataFrame) -> pl.DataFrame:
        values = frame[column].to_list()
        values[0] = change(values[0])
        return frame.with_columns(pl.Series(column, values, dtype=records.ALIGNED[column]))

    return applied


def with_token(index: int, value: Any) -> Any:
    return lambda tokens: [*tokens[:index], value, *tokens[index + 1 :]]


FAULTS: dict[str, tuple[Any, str, str]] = {
    "a row is missing": (
        lambda frame: frame[1:],
        "FusionIncomplete",
        "align/all/0123456789abcdef has no distributions for 1 rows that SFT trains on; the first is row prompt-00",
    ),
    "other tokens": (
        change_first("target_ids", lambda ids: [*ids[:-1], 7]),
        "FusionMismatch",
        "row prompt-00 of align/all/0123456789abcdef has distributions for other tokens than those of the response",
    ),
    "a sum that is not 1": (
        change_first("fused_p", with_token(1, [0.5, 0.25, 0.125])),
        "FusionInvalid",
        (
            "token 1 of row prompt-00 of align/all/0123456789abcdef has probabilities with the sum 0.875; "
            "they must not be negative and sum to 1"
        ),
    ),
    "NaN": (
        change_first("fused_p", with_token(2, [float("nan"), 0.5, 0.5])),
        "FusionInvalid",
        "token 2 of row prompt-00 of align/all/0123456789abcdef has probabilities with the sum nan; ",
    ),
    "a negative probability": (
        change_first("fused_p", with_token(0, [-0.5, 1.0, 0.5])),
        "FusionInvalid",
        "they must not be negative",
    ),
    "one id twice": (
        change_first("fused_ids", with_token(0, [5, 5, 6])),
        "FusionInvalid",
        (
            "token 0 of row prompt-00 of align/all/0123456789abcdef has 3 probabilities for 2 distinct ids; "
            "at most 3 are allowed, one for each id"
        ),
    ),
    "an id beyond the vocabulary": (
        change_first("fused_ids", with_token(0, [5, 100_000, 6])),
        "FusionInvalid",
        "align/all/0123456789abcdef has distributions over the ids 0 to 100000, but the model has ",
    ),
}


@pytest.mark.parametrize(("change", "code", "said"), FAULTS.values(), ids=FAULTS.keys())
def test_distributions_that_do_not_fit_the_rows_are_refused(change: Any, code: str, said: str, fusing: Any) -> None:
    ctx = fusing(change)
    with pytest.raises(DataError) as caught:
        stage.run_sft(ctx)
    assert said in str(caught.value)
    assert (caught.value.code, caught.value.field) == (code, "sft.fusion")
    assert ctx.output.committed() is None


def test_fusion_on_the_tokens_of_prompts_is_refused(fusing: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        stage.run_sft(fusing(loss_tokens="All"))
    assert str(caught.value) == "sft.lossTokens is 'All': the fusion loss is on tokens of responses alone"


def fusing_experiment(root: Path, tokens: list[TokenRow], **settings: Any) -> tuple[Experiment, Path]:
    """An experiment with an align artifact, and the config of its SFT."""
    experiment = make_experiment(root)
    ref = ArtifactRef(stage="align/all", hash=EXPERIMENT_HASH)
    writer = VolumeStore(experiment.volume, lambda: NOON).writer(ref, config={}, inputs={})
    name = "parts/part-00000.parquet"
    writer.publish(name, aligned_frame(tokens).write_parquet)
    writer.commit(files=[name], rows={name: len(tokens)}, details={"top_k": 3})
    path = experiment.config({"stage": "sft", "fusion": FUSION, **settings})
    config = json.loads(path.read_text())
    config["inputs"]["align/all"] = ref.model_dump()
    path.write_text(json.dumps(config))
    return experiment, path


@pytest.mark.slow
def test_zero_3_on_two_ranks_trains_what_one_rank_does(local_run: Any, tmp_path: Path) -> None:
    tokens = local_run("rows", stage="sft").token_rows()
    one, config = fusing_experiment(tmp_path / "one", tokens, zero_stage=0)
    run_ranks(one, config)
    two, config = fusing_experiment(tmp_path / "two", tokens, zero_stage=3, gradient_checkpointing=True)
    run_ranks(two, config, world_size=2)
    for ours, theirs in zip(two.metrics("sft"), one.metrics("sft"), strict=True):
        assert [ours[name] for name in ("loss", "fusion", "logps")] == pytest.approx(
            [theirs[name] for name in ("loss", "fusion", "logps")], rel=1e-4
        )
    weights = one.weights("sft")
    for name, tensor in two.weights("sft").items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-5)
