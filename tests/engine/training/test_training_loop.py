"""The loop on one process: exactness, resuming, self-checks."""

from __future__ import annotations

import hashlib
import random
import shutil
from typing import Any

import pytest
import torch
from training_support import full_tensor, triples_frame

from wrpo_engine.errors import DataError, Interrupted
from wrpo_engine.training.batch.collate import collate
from wrpo_engine.training.batch.layout import Layout
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.models.logps import sum_by_sequence
from wrpo_engine.training.monitoring.metrics import CLOCK_FIELDS, read_rows

FLOAT64 = {"dtype": torch.float64}


def assert_equal_runs(ours: Any, theirs: Any, *, atol: float = 0.0) -> None:
    for name, tensor in theirs.weights().items():
        torch.testing.assert_close(ours.weights()[name], tensor, rtol=0, atol=atol)


def test_sequence_log_probs_equal_those_of_plain_transformers_logits(local_run: Any) -> None:
    from transformers import LlamaForCausalLM

    run = local_run(run=FLOAT64)
    rows = run.token_rows()[:3]
    ours = run.backend().frozen_sequence_logps(collate(rows)).view(3, 3)
    model = LlamaForCausalLM.from_pretrained(run.model_dir, dtype=torch.float64)
    for index, row in enumerate(rows):
        for column, response in enumerate(row.responses):
            ids = torch.tensor([[*row.prompt, *response]])
            logps = torch.log_softmax(model(ids).logits[0, len(row.prompt) - 1 : -1], dim=-1)
            expected = logps.gather(-1, torch.tensor(response)[:, None]).sum()
            torch.testing.assert_close(ours[index, column], expected.detach(), rtol=0, atol=1e-10)


def test_padding_changes_nothing(local_run: Any) -> None:
    run = local_run(run=FLOAT64)
    backend, rows = run.backend(), run.token_rows()
    together = backend.frozen_sequence_logps(collate(rows))
    alone = torch.cat([backend.frozen_sequence_logps(collate([row])) for row in rows])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("objective", ["WRPO-DPO", "WRPO-SimPO", "WRPO-IPO", "DPO", "SimPO", "IPO"])
def test_accumulated_micro_batches_equal_one_large_batch(objective: str, local_run: Any) -> None:
    """Also where the last step of an epoch is smaller and micro-batches hold different numbers of rows."""
    large = local_run("large", objective=objective, run=FLOAT64 | {"micro_batch_tokens": 10**6})
    small = local_run("small", objective=objective, run=FLOAT64 | {"micro_batch_tokens": 1})
    large.run()
    small.run()
    assert [row["loss"] for row in small.metrics()] == pytest.approx([row["loss"] for row in large.metrics()], abs=1e-9)
    assert_equal_runs(small, large, atol=1e-9)


def test_sft_weighs_tokens_of_the_global_batch_not_micro_batches(local_run: Any) -> None:
    large = local_run("large", stage="sft", run=FLOAT64 | {"micro_batch_tokens": 10**6})
    small = local_run("small", stage="sft", run=FLOAT64 | {"micro_batch_tokens": 1})
    large.run()
    small.run()
    assert_equal_runs(small, large, atol=1e-9)
    first = large.plan().step_rows(0)
    rows = [large.token_rows()[index] for index in first]
    logps = large.backend().frozen_sequence_logps(collate(rows)).sum().item()
    assert large.metrics()[0]["loss"] == pytest.approx(-logps / sum(row.num_loss_tokens for row in rows), abs=1e-9)


@pytest.mark.parametrize("layout", Layout)
def test_margins_of_the_first_step_are_exactly_zero(layout: Layout, local_run: Any) -> None:
    run = local_run(run={"layout": layout})
    run.run()
    first = run.metrics()[0]
    names = ("margin", "margin_source", "margin_target", "rewards_source_chosen", "rewards_rejected")
    assert {name: first[name] for name in names} == dict.fromkeys(names, 0.0)
    assert first["loss"] == pytest.approx(0.6931471805599453, abs=1e-7)


def test_the_first_loss_of_ipo_is_its_target_squared(local_run: Any) -> None:
    run = local_run(objective="WRPO-IPO", tau=0.5)
    run.run()
    assert run.metrics()[0]["loss"] == 1.0


def test_sft_on_all_tokens_counts_the_prompts_too(local_run: Any) -> None:
    from transformers import LlamaForCausalLM

    run = local_run(stage="sft", loss_tokens="All", run=FLOAT64)
    run.run()
    model = LlamaForCausalLM.from_pretrained(run.model_dir, dtype=torch.float64)
    total, count = 0.0, 0
    for index in run.plan().step_rows(0):
        row = run.token_rows()[index]
        ids = torch.tensor([[*row.prompt, *row.responses[0]]])
        logps = torch.log_softmax(model(ids).logits[0, :-1], dim=-1).gather(-1, ids[0, 1:, None])
        total, count = total - logps.sum().item(), count + len(logps)
    assert run.metrics()[0]["loss"] == pytest.approx(total / count, abs=1e-9)
    assert count > sum(len(run.token_rows()[index].responses[0]) for index in run.plan().step_rows(0))


def test_the_alpha_column_is_the_schedule(local_run: Any) -> None:
    run = local_run(alpha={"max": 0.3})
    run.run()
    assert [row["alpha"] for row in run.metrics()] == pytest.approx([0.3 * step / 6 for step in range(6)])
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4, 5, 6]


def test_metrics_start_with_what_is_deterministic_and_end_with_the_clock(local_run: Any) -> None:
    run = local_run()
    run.run()
    names = list(read_rows(run.directory / "metrics.jsonl")[0][0])
    assert names[:5] == ["step", "loss", "alpha", "learning_rate", "grad_norm"]
    clock = [name for name in names if name in CLOCK_FIELDS]
    assert names[-len(clock) :] == clock
    # This machine's peak is unknown, and FlexAttention has not failed.
    assert set(CLOCK_FIELDS) - set(clock) == {"mfu", "attention_fallback"}


def test_accuracies_compare_each_row_with_itself(local_run: Any) -> None:
    task = local_run().task()
    row = TokenRow("a", (1,), ((2,), (3,), (4,)))
    batch = collate([row, row])
    logps = torch.tensor([-1.0, -5.0, -3.0, -4.0, -2.0, -3.0])
    terms = task.terms(batch, logps, torch.zeros(6), {"alpha": 0.1})
    assert terms.statistics["accuracy_source"].tolist() == [1.0, 0.0]
    assert terms.statistics["accuracy_target"].tolist() == [0.0, 1.0]
    assert terms.statistics["accuracy_source_over_target"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("stop_after", [1, 2, 3, 5])
def test_a_stopped_run_continues_bit_exactly(stop_after: int, local_run: Any) -> None:
    whole = local_run("whole")
    whole.run()
    broken = local_run("broken", run={"stop_after": stop_after, "checkpoint_every_steps": 100})
    with pytest.raises(Interrupted, match=f"^stopped on request after step {stop_after} of 6; "):
        broken.run()
    broken.stop_after = None
    broken.run()
    assert_equal_runs(broken, whole)
    assert broken.metrics() == whole.metrics()


def test_a_killed_run_continues_bit_exactly_from_its_last_checkpoint(local_run: Any) -> None:
    whole = local_run("whole")
    whole.run()
    killed = local_run("killed", run={"checkpoint_every_steps": 2})
    shutil.copytree(whole.directory, killed.directory)
    # What a kill in step 6 leaves: checkpoints 2 and 4, rows of metrics up to 5, the last one cut off.
    lines = (killed.directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    (killed.directory / "metrics.jsonl").write_text("".join(lines[:5]) + lines[5][:20])
    killed.run()
    assert_equal_runs(killed, whole)
    assert killed.metrics() == whole.metrics()


SHARD, MARKER = "rank-00000.safetensors", "checkpoint.json"
DAMAGE = {
    "truncated shard": (SHARD, lambda path: path.write_bytes(path.read_bytes()[:-100])),
    "altered shard": (SHARD, lambda path: path.write_bytes(path.read_bytes()[:-4] + b"xxxx")),
    "missing shard": (SHARD, lambda path: path.unlink()),
    "truncated marker": (MARKER, lambda path: path.write_bytes(path.read_bytes()[:-100])),
    "missing marker": (MARKER, lambda path: path.unlink()),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    name: str, damage: Any, local_run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run = local_run()
    run.run()
    weights = run.weights()
    damage(run.directory / "checkpoints" / "step-00000004" / name)
    run.run()
    assert any(f"step-00000004 is {state}" in caplog.text for state in ("damaged", "incomplete"))
    assert run.metrics()[2]["step"] == 3
    for key, tensor in weights.items():
        torch.testing.assert_close(run.weights()[key], tensor, rtol=0, atol=0)


def test_only_the_last_two_checkpoints_are_kept(local_run: Any) -> None:
    run = local_run(run={"checkpoint_every_steps": 1})
    run.run()
    kept = sorted(path.name for path in (run.directory / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000005"]


@pytest.mark.parametrize("layout", Layout)
def test_a_loss_that_is_not_finite_stops_before_any_weight_moves_and_names_the_rows(
    layout: Layout, local_run: Any
) -> None:
    run = local_run(objective="SimPO", run={"layout": layout})
    backend = run.backend()
    bad = run.plan().step_rows(0)[1]
    poisoned = run.token_rows()[bad].responses[0][0]
    before = {name: tensor.clone() for name, tensor in _weights(backend).items()}

    def poison(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        logps, entropies = type(backend).sequence_logps_and_entropies(backend, batch)
        hit = torch.tensor([row == run.token_rows()[bad].row_id for row in batch.row_ids]).repeat_interleave(2)
        return torch.where(hit, logps * float("nan"), logps), entropies

    backend.sequence_logps_and_entropies = poison
    run.backend = lambda: backend
    with pytest.raises(DataError) as caught:
        run.run()
    assert poisoned >= 0
    assert str(caught.value) == (
        f"the loss is not finite at step 1 for 1 rows: {run.token_rows()[bad].row_id}. "
        "Training stopped before the optimizer step, so the step has changed no weight"
    )
    assert caught.value.exit_code == 65
    for name, tensor in _weights(backend).items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("factor", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_stops_before_any_weight_moves(factor: float, local_run: Any) -> None:
    run = local_run()
    backend = run.backend()
    before = {name: tensor.clone() for name, tensor in _weights(backend).items()}
    backend.backward = lambda loss, is_last: type(backend).backward(backend, loss * factor, is_last=is_last)
    run.backend = lambda: backend
    with pytest.raises(DataError) as caught:
        run.run()
    assert str(caught.value) == (
        "the gradient norm is nan at step 1 although every loss is finite. "
        "Training stopped before the optimizer step, so the step has changed no weight"
    )
    assert (caught.value.code, caught.value.exit_code) == ("GradientNotFinite", 65)
    for name, tensor in _weights(backend).items():
        assert torch.equal(tensor, before[name])


def _weights(backend: Any) -> dict[str, torch.Tensor]:
    from wrpo_engine.training.backends.base import TensorKind

    return {name: full_tensor(backend, name, TensorKind.WEIGHT) for name in backend.parameter_names()}


@pytest.mark.parametrize("layout", Layout)
def test_a_reference_of_other_weights_stops_the_run_at_step_0(layout: Layout, local_run: Any) -> None:
    run = local_run(run={"layout": layout})
    table = run.reference(run.backend())
    assert table is not None
    first = run.plan().step_rows(0)[0]
    row = run.token_rows()[first]
    table.values[first][2] -= len(row.responses[2])
    run.reference = lambda _backend: table
    with pytest.raises(DataError) as caught:
        run.run()
    assert caught.value.code == "ReferenceMismatch"
    tokens = len(row.responses[2])
    assert str(caught.value) == (
        f"at step 0 policy and reference differ by 1 per token on a response of {tokens} tokens of row {row.row_id}, "
        f"where they must agree (tolerance {1e-4 * (256 / tokens) ** 0.5:.3g})"
    )


def test_the_cached_reference_equals_the_recomputed_one_and_costs_no_forward_pass(local_run: Any) -> None:
    run = local_run()
    backend = run.backend()
    first = run.reference(backend)
    backend.reference_sequence_logps = None
    second = run.reference(backend)
    assert first is not None
    assert second is not None
    assert sorted(first.values) == sorted(second.values) == list(range(11))
    assert all(torch.equal(first.values[row], second.values[row]) for row in first.values)


def test_an_incomplete_reference_names_the_missing_rows(local_run: Any) -> None:
    run = local_run()
    table = run.reference(run.backend())
    assert table is not None
    del table.values[3], table.values[5]
    with pytest.raises(DataError) as caught:
        table.require_complete(run.token_rows())
    assert str(caught.value) == "the reference's log-probabilities lack 2 of 11 rows: prompt-03, prompt-05"


def test_the_reference_pass_continues_after_its_last_part(local_run: Any) -> None:
    run = local_run()
    whole = run.reference(run.backend())
    parts = sorted((run.directory / "reference").glob("part-*"))
    assert len(parts) == 2
    parts[1].unlink()
    again = run.reference(run.backend())
    assert whole is not None
    assert again is not None
    assert all(torch.equal(whole.values[row], again.values[row]) for row in whole.values)


def test_training_moves_the_margin_up(local_run: Any) -> None:
    run = local_run(epochs=6, alpha={"schedule": "Constant", "max": 0.5})
    run.run()
    assert run.metrics()[-1]["margin"] > run.metrics()[0]["margin"] + 0.1


def test_a_run_stopped_after_its_last_step_has_nothing_left_and_keeps_its_last_row(local_run: Any) -> None:
    run = local_run(run={"stop_after": 6})
    with pytest.raises(Interrupted, match=r"^stopped on request after step 6 of 6; "):
        run.run()
    run.stop_after = None
    outcome = run.run()
    expected = {name: value for name, value in run.metrics()[-1].items() if name not in CLOCK_FIELDS}
    assert outcome.last_row == expected
    assert outcome.last_row["step"] == 6


def test_random_stops_end_in_the_uninterrupted_runs_weights(local_run: Any) -> None:
    whole = local_run("whole", epochs=3)
    whole.run()
    generator = random.Random(5)
    broken = local_run("broken", epochs=3, run={"checkpoint_every_steps": 100})
    while True:
        broken.stop_after = broken.calls + generator.randint(1, 3)
        try:
            broken.run()
        except Interrupted:
            continue
        break
    assert_equal_runs(broken, whole)
    assert broken.metrics() == whole.metrics()


def test_the_fixture_rows_have_mixed_lengths() -> None:
    frame = triples_frame()
    assert frame["rejected"].str.len_chars().n_unique() > 3


def test_sums_keep_the_gradient() -> None:
    values = torch.ones(3, dtype=torch.float64, requires_grad=True)
    sum_by_sequence(values, torch.tensor([0, 1, 1]), 2)[1].backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 1.0, 1.0]


def test_random_numbers_of_a_step_follow_from_seed_step_and_rank_alone(local_run: Any) -> None:
    from wrpo_engine.process.progress import Progress
    from wrpo_engine.seeds import seed_of

    seen = []

    class Seeds(Progress):
        def update(self, *_: Any, **__: Any) -> None:
            seen.append(torch.initial_seed())

    run = local_run(run={"progress": Seeds()})
    run.run()
    assert seen == [seed_of(run.params().seed, step, 0) for step in range(6)]
    assert seed_of(42, 0, 0) == int.from_bytes(hashlib.sha256(b"[42, 0, 0]").digest()[:8]) >> 2
    assert seen[0] == seed_of(42, 0, 0)
