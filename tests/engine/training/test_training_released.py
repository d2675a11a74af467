"""Step-by-step equality of the engine with the released recipe and Hugging Face's Trainer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import released_trainer
import torch
from released_trainer import PARTS, Recipe, Row, Trace
from safetensors.torch import load_file
from training_support import FAST_ON_IDS, make_experiment, plain_backend, start_ranks

from wrpo_engine.config import OptimizerParams
from wrpo_engine.training import session, stage
from wrpo_engine.training.backends.schedule import num_warmup_steps
from wrpo_engine.training.batch.batching import BatchPlan, RowCost

TOLERANCE = 1e-5


def make_rows(count: int) -> list[Row]:
    """Token ids without structure, of mixed lengths, from a fixed generator."""
    generator = torch.Generator().manual_seed(11)

    def ids(shortest: int, longest: int) -> list[int]:
        length = int(torch.randint(shortest, longest + 1, (1,), generator=generator))
        return torch.randint(5, 259, (length,), generator=generator).tolist()

    return [{"prompt_ids": ids(2, 12), **{part: [*ids(1, 14), 2] for part in PARTS}} for _ in range(count)]


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """The same recipe as the engine's settings."""
    settings: dict[str, Any] = {
        "stage": "train",
        **FAST_ON_IDS,
        "objective": recipe.objective,
        "learning_rate": recipe.learning_rate,
        "weight_decay": recipe.weight_decay,
        "epochs": recipe.epochs,
        "global_batch_size": recipe.rows_per_step,
        "shuffle": False,
        "zero_stage": 0,
    }
    form = recipe.objective.removeprefix("WRPO-")
    if form != "IPO":
        settings["beta"] = recipe.beta
    if form == "SimPO":
        settings["gamma"] = recipe.gamma
    if form == "IPO":
        settings["tau"] = recipe.tau
    if recipe.objective.startswith("WRPO"):
        settings["alpha"] = {"max": recipe.alpha_max}
    return settings


@pytest.fixture
def engine_run(
    make_ctx: Any, training_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Trace]:
    """Run the train stage on the rows and return what it recorded and exported."""
    monkeypatch.setattr(session, "make_backend", plain_backend)

    def run(rows: list[Row], recipe: Recipe, **runtime: Any) -> Trace:
        pl.DataFrame(rows).write_parquet(tmp_path / "triples.parquet")
        params = {
            **settings_of(recipe),
            "model": {"name": str(training_model_dir)},
            "tokenized_triples": str(tmp_path / "triples.parquet"),
        }
        ctx = make_ctx(params, {}, runtime={"micro_batch_size": recipe.rows_per_forward, **runtime})
        stage.run_train(ctx)
        lines = (ctx.output.directory / "metrics.jsonl").read_text().splitlines()
        return Trace([json.loads(line) for line in lines], load_file(ctx.output.directory / "model/model.safetensors"))

    return run


def assert_same(ours: Trace, theirs: Trace) -> None:
    """Loss, alpha, rate, norm, log-probs and rewards of every step, and every weight at the end."""
    assert len(ours.steps) == len(theirs.steps)
    for step, (our, their) in enumerate(zip(ours.steps, theirs.steps, strict=True)):
        for name, value in their.items():
            if name == "alpha" and name not in our:
                continue
            # Sums over a response's tokens are large: fp32 has seven digits.
            assert our[name] == pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE), (step, name)
    assert ours.weights.keys() == theirs.weights.keys()
    for name, tensor in theirs.weights.items():
        torch.testing.assert_close(
            ours.weights[name], tensor, rtol=0, atol=TOLERANCE, msg=partial("{}: {}".format, name)
        )


RECIPES = {
    "WRPO-DPO": Recipe(alpha_max=0.5),
    "WRPO-SimPO": Recipe("WRPO-SimPO", beta=2.0, gamma=0.6),
    "WRPO-IPO": Recipe("WRPO-IPO", tau=0.5, alpha_max=0.3),
    "DPO": Recipe("DPO", beta=0.3),
    "SimPO": Recipe("SimPO", beta=2.0, gamma=0.6),
    "IPO": Recipe("IPO", tau=0.5),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_every_objective_equals_the_released_recipe(
    recipe: Recipe, engine_run: Callable[..., Trace], training_model_dir: Path
) -> None:
    rows = make_rows(11)
    assert_same(engine_run(rows, recipe), released_trainer.train(training_model_dir, rows, recipe))


@pytest.mark.parametrize("layout", ["padded", "packed", "shared-prefix"])
def test_many_steps_of_wrpo_equal_the_released_recipe_in_every_layout(
    layout: str, engine_run: Callable[..., Trace], training_model_dir: Path
) -> None:
    """Eight epochs of three steps, each of two forward passes, the last of an epoch smaller in both."""
    rows, recipe = make_rows(11), Recipe(alpha_max=0.5, epochs=8, learning_rate=5e-4)
    theirs = released_trainer.train(training_model_dir, rows, recipe)
    assert max(step["grad_norm"] for step in theirs.steps) > 1, "clipping must take part"
    assert_same(engine_run(rows, recipe, layout=layout), theirs)


def hugging_face_run(model_dir: Path, rows: list[Row], recipe: Recipe, directory: Path) -> Trace:
    """The released code is a transformers.Trainer with another compute_loss: so is this."""
    from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    reference = LlamaForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    trace, losses = Trace(), list[float]()

    class Recorder(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "grad_norm" in logs:
                trace.steps.append({"learning_rate": logs["learning_rate"], "grad_norm": float(logs["grad_norm"])})

    class ReleasedTrainer(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def compute_loss(self, model: Any, inputs: Any, **_: Any) -> Any:
            logp, length = released_trainer.log_probs(model, inputs, len(recipe.parts))
            with torch.no_grad():
                reference_logp, _mask = released_trainer.log_probs(reference, inputs, len(recipe.parts))
            alpha = recipe.alpha_max * self.state.global_step / self.state.max_steps
            loss = released_trainer.loss_and_rewards(recipe, alpha, logp, reference_logp, length)[0].mean()
            losses.append(loss.item())
            return loss

    arguments = TrainingArguments(
        output_dir=str(directory),
        per_device_train_batch_size=recipe.rows_per_forward,
        gradient_accumulation_steps=recipe.rows_per_step // recipe.rows_per_forward,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup_ratio,
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    trainer = ReleasedTrainer(
        model=LlamaForCausalLM.from_pretrained(model_dir, dtype=torch.float32),
        args=arguments,
        train_dataset=rows,
        data_collator=lambda chosen: released_trainer.concatenated(chosen, recipe.parts),
        callbacks=[Recorder()],
    )
    # As all preference trainers do: else the losses of a step's forward passes would be summed, not averaged.
    trainer.model_accepts_loss_kwargs = False
    trainer.train()
    trace.weights = {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}
    # The forward passes of each step, as the accumulation cut them.
    position = 0
    for step, forwards in zip(trace.steps, released_trainer.micro_batches(rows, recipe) * recipe.epochs, strict=True):
        step["loss"] = sum(losses[position : position + len(forwards)]) / len(forwards)
        position += len(forwards)
    assert position == len(losses)
    return trace


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_step_arithmetic_equals_that_of_hugging_faces_trainer(
    weight_decay: float, engine_run: Callable[..., Trace], training_model_dir: Path, tmp_path: Path
) -> None:
    """Ten rows, four per step, two per forward pass: the last accumulation of an epoch is of one pass, not of two."""
    rows, recipe = make_rows(10), Recipe(alpha_max=0.5, epochs=3, weight_decay=weight_decay)
    assert_same(engine_run(rows, recipe), hugging_face_run(training_model_dir, rows, recipe, tmp_path / "trainer"))


@pytest.mark.parametrize("num_rows", [1, 3, 8, 10, 11])
@pytest.mark.parametrize(("per_forward", "accumulation", "epochs"), [(1, 1, 1), (1, 8, 2), (2, 3, 3), (4, 2, 1)])
def test_the_number_of_steps_equals_hugging_faces(
    num_rows: int, per_forward: int, accumulation: int, epochs: int
) -> None:
    """Trainer.set_initial_training_values: batches of an epoch, rounded up; those per step, rounded up, at least 1."""
    batches = math.ceil(num_rows / per_forward)
    theirs = math.ceil(epochs * max(batches // accumulation + int(batches % accumulation > 0), 1))
    costs = [RowCost(2, (2, 2, 2))] * num_rows
    plan = BatchPlan(costs, per_forward * accumulation, epochs, seed=0, world_size=1, micro_batch_tokens=10**6)
    assert plan.num_steps == theirs


@pytest.mark.parametrize("num_steps", [1, 3, 9, 10, 11, 29, 30, 31, 311])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.03, 1 / 3, 1.0])
def test_the_warm_up_is_rounded_as_hugging_face_rounds_it(num_steps: int, ratio: float, tmp_path: Path) -> None:
    from transformers import TrainingArguments

    theirs = math.ceil(num_steps * ratio)
    if ratio < 1:
        arguments = TrainingArguments(output_dir=str(tmp_path), warmup_steps=ratio, use_cpu=True, report_to=[])
        theirs = arguments.get_warmup_steps(num_steps)
    params = OptimizerParams(learning_rate=1.0, warmup_ratio=ratio)
    assert num_warmup_steps(num_steps, params) == theirs


@pytest.mark.slow
def test_the_command_with_deepspeed_equals_the_released_recipe(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path)
    rows, recipe = make_rows(11), Recipe(alpha_max=0.5, epochs=4)
    pl.DataFrame(rows).write_parquet(tmp_path / "triples.parquet")
    params = {**settings_of(recipe), "tokenized_triples": str(tmp_path / "triples.parquet")}
    config = experiment.config(params, {"micro_batch_size": recipe.rows_per_forward})
    config.write_text(json.dumps({**json.loads(config.read_text()), "inputs": {}}))
    gang = start_ranks(experiment, config, world_size=1)
    assert gang.wait() == [0], gang.text()
    ours = Trace(experiment.metrics("train"), experiment.weights("train"))
    assert_same(ours, released_trainer.train(experiment.root / "model", rows, recipe))
