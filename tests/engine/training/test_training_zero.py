"""Real DeepSpeed runs: every ZeRO stage and process count trains the same model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_support import save_small_model
from support.patience import LONG_S
from training_support import Experiment, make_experiment, run_ranks, start_nodes, start_ranks

pytestmark = pytest.mark.slow

COMPARED = ("loss", "grad_norm", "margin", "margin_source", "margin_target", "logps_rejected", "accuracy_target")


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """ZeRO 0 in one process."""
    experiment = make_experiment(tmp_path_factory.mktemp("baseline"))
    run_ranks(experiment, experiment.config({"stage": "train", "zero_stage": 0, "beta": 0.1}))
    return experiment


def assert_same_run(experiment: Experiment, baseline: Experiment, stage: str = "train", *, atol: float = 1e-5) -> None:
    ours, theirs = experiment.metrics(stage), baseline.metrics(stage)
    assert len(ours) == len(theirs) == 6
    for our, their in zip(ours, theirs, strict=True):
        compared = {name: our[name] for name in COMPARED if name in our}
        assert compared == pytest.approx({name: their[name] for name in compared}, rel=1e-4, abs=atol)
    weights = baseline.weights(stage)
    for name, tensor in experiment.weights(stage).items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=atol)


IN_MEMORY = {"reference": "in-memory"}
ONE_ROW_AT_A_TIME = {"micro_batch_tokens": 1, "checkpoint_every_steps": 100}
BF16_GRADIENTS = {"precision": "bfloat16", "gradient_accumulation_dtype": "bfloat16"}
EVERYTHING_OFFLOADED = {"offload": "optimizer-and-parameters"}
SETTINGS = {
    "0 on two": (0, 2, {}, {}),
    "1 on one, optimizer offloaded": (1, 1, {}, {"offload": "optimizer"}),
    "1 on two, frozen model in memory": (1, 2, {}, IN_MEMORY),
    "2 on one": (2, 1, {}, {}),
    "2 on two, optimizer offloaded, one row at a time": (2, 2, {}, {"offload": "optimizer", **ONE_ROW_AT_A_TIME}),
    "3 on one": (3, 1, {}, {}),
    "3 on two, gradient checkpointing": (3, 2, {"gradient_checkpointing": True}, {"overlap_communication": True}),
    "3 on two, frozen model in memory": (3, 2, {}, IN_MEMORY),
    "3 on two, optimizer offloaded": (3, 2, {}, {"offload": "optimizer"}),
    "3 on two, all offloaded, frozen model in memory": (3, 2, {}, {**EVERYTHING_OFFLOADED, **IN_MEMORY}),
}
"""(ZeRO stage, processes, further parameters, runtime)"""


@pytest.mark.parametrize(("zero_stage", "world_size", "params", "runtime"), SETTINGS.values(), ids=SETTINGS.keys())
def test_every_zero_stage_and_option_trains_the_same_model(
    zero_stage: int,
    world_size: int,
    params: dict[str, Any],
    runtime: dict[str, Any],
    baseline: Experiment,
    tmp_path: Path,
) -> None:
    experiment = make_experiment(tmp_path)
    config = experiment.config({"stage": "train", "zero_stage": zero_stage, "beta": 0.1, **params}, runtime)
    faults = dict.fromkeys(range(world_size), "say_how_models_come_to_deepspeed")
    gang = start_ranks(experiment, config, world_size=world_size, faults=faults)
    assert gang.wait() == [0] * world_size, gang.text()
    assert_same_run(experiment, baseline)
    assert experiment.metrics("train")[0]["margin"] == 0.0
    # At stage 3 no rank ever held a whole parameter; below it every rank holds all of them.
    whole = {int(line.split(": ")[1]) for line in gang.text().splitlines() if line.startswith("whole parameters: ")}
    assert whole == ({0} if zero_stage == 3 else {21})


@pytest.mark.parametrize("zero_stage", [0, 1, 3])
def test_one_collective_gathers_a_checkpoint_and_each_tensor_comes_to_one_host(zero_stage: int, tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path)
    config = experiment.config({"stage": "train", "zero_stage": zero_stage, "beta": 0.1, "epochs": 1})
    gang = start_ranks(experiment, config, world_size=2, faults=dict.fromkeys(range(2), "say_what_comes_to_the_host"))
    assert gang.wait() == [0, 0], gang.text()
    lines = gang.text().splitlines()
    copied = Counter(line.split(" ")[1] for line in lines if line.startswith("copied: "))
    # One checkpoint after two of three steps, and the exported weights, of 21 parameters; not one of them twice.
    assert copied == {"weight": 2 * 21, "exp_avg": 21, "exp_avg_sq": 21}
    gathered = sorted(line for line in lines if line.startswith("gathered: "))
    # On both ranks: the checkpoint, whose 63 tensors fit a bucket, and the export. Replicas exchange nothing, and the
    # second rank has no share in the export.
    expected = {0: ["0 0", "0 1", "0 1", "0 1"]}.get(zero_stage, ["1 1"] * 4)
    assert gathered == [f"gathered: {calls}" for calls in expected]


def test_a_compiled_model_trains_the_same_weights(baseline: Experiment, tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path)
    runtime = {"torch_compile": True, "layout": "padded"}
    config = experiment.config({"stage": "train", "zero_stage": 1, "beta": 0.1}, runtime)
    gang = start_ranks(experiment, config, world_size=1, faults={0: "compile_without_code_generation"})
    assert gang.wait() == [0], gang.text()
    assert "compiling" in gang.text()
    assert_same_run(experiment, baseline)


@pytest.fixture(scope="module")
def large_baseline(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """ZeRO 3 in one process, of a model whose matrices DeepSpeed does not leave in memory: those of 1 MiB and more."""
    experiment = make_experiment(tmp_path_factory.mktemp("large"))
    save_small_model(experiment.root / "model", hidden_size=512)
    run_ranks(experiment, experiment.config(LARGE))
    return experiment


LARGE = {"stage": "train", "zero_stage": 3, "beta": 0.1}


@pytest.mark.parametrize("offload", ["optimizer", "optimizer-and-parameters"])
def test_nvme_offload_trains_the_same_weights_or_says_what_is_missing(
    offload: str, large_baseline: Experiment, tmp_path: Path
) -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    experiment = make_experiment(tmp_path)
    save_small_model(experiment.root / "model", hidden_size=512)
    runtime = {"offload": offload, "offload_nvme_path": str(tmp_path / "nvme")}
    gang = start_ranks(
        experiment, experiment.config(LARGE, runtime), world_size=1, faults={0: "say_what_is_written_to_nvme"}
    )
    codes = gang.wait(LONG_S)  # The first run on a machine compiles DeepSpeed's asynchronous I/O.
    if not AsyncIOBuilder().is_compatible(verbose=False):
        assert codes == [78], gang.text()
        assert "training.offloadNvmePath is " in gang.text()
        assert "DeepSpeed's asynchronous I/O cannot be built" in gang.text()
        return
    assert codes == [0], gang.text()
    assert_same_run(experiment, large_baseline)
    written = {line.split(": ")[1] for line in gang.text().splitlines() if line.startswith("written to NVMe: ")}
    assert {Path(name).is_relative_to(tmp_path / "nvme") for name in written} == {True}
    assert any(name.endswith("_param.tensor.swp") for name in written) == (offload == "optimizer-and-parameters")


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_bfloat16_follows_fp32_within_its_precision(zero_stage: int, baseline: Experiment, tmp_path: Path) -> None:
    """Eight bits of mantissa: losses agree within 0.05 over six large steps, and weights are saved as bfloat16."""
    experiment = make_experiment(tmp_path)
    config = experiment.config({"stage": "train", "zero_stage": zero_stage, "beta": 0.1, "precision": "bfloat16"})
    run_ranks(experiment, config, world_size=2)
    ours, theirs = experiment.metrics("train"), baseline.metrics("train")
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], abs=0.05)
    assert {tensor.dtype for tensor in experiment.weights("train").values()} == {torch.bfloat16}


COMPACT = {
    "1 in bfloat16, both": (1, BF16_GRADIENTS | {"optimizer_moments": "8bit"}, {}),
    "2, 8-bit moments": (2, {"optimizer_moments": "8bit"}, {}),
    "3, bf16 moments, optimizer offloaded": (3, {"optimizer_moments": "bfloat16"}, {"offload": "optimizer"}),
    "3 in bfloat16, both": (3, BF16_GRADIENTS | {"optimizer_moments": "8bit"}, {}),
}
"""(ZeRO stage, further parameters, runtime)"""


@pytest.mark.parametrize(("zero_stage", "params", "runtime"), COMPACT.values(), ids=COMPACT.keys())
def test_compact_gradients_and_moments_follow_fp32_and_resume_bit_for_bit(
    zero_stage: int, params: dict[str, Any], runtime: dict[str, Any], baseline: Experiment, tmp_path: Path
) -> None:
    settings = {"stage": "train", "zero_stage": zero_stage, "beta": 0.1, **params}
    whole, broken = make_experiment(tmp_path / "whole"), make_experiment(tmp_path / "broken")
    run_ranks(whole, whole.config(settings, runtime), world_size=2)
    ours, theirs = whole.metrics("train"), baseline.metrics("train")
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], abs=0.05)
    # The only checkpoint is that after four of six steps.
    config = broken.config(settings, {**runtime, "checkpoint_every_steps": 4})
    gang = start_ranks(broken, config, world_size=2, faults=dict.fromkeys(range(2), "fail_in_the_sixth_step"))
    assert gang.wait() == [75, 75], gang.text()
    again = run_ranks(broken, config, world_size=2)
    assert "continuing after step 4 of 6" in again.text()
    assert broken.deterministic_metrics("train") == whole.deterministic_metrics("train")
    weights = whole.weights("train")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in broken.weights("train").items())


LOST = {
    "0": (0, "float32"),
    "1": (1, "float32"),
    "1 in bfloat16": (1, "bfloat16"),
    "2 in bfloat16": (2, "bfloat16"),
    "3": (3, "float32"),
}


@pytest.mark.parametrize(("zero_stage", "precision"), LOST.values(), ids=LOST.keys())
def test_a_gradient_that_is_not_finite_stops_before_any_weight_moves(
    zero_stage: int, precision: str, tmp_path: Path
) -> None:
    experiment = make_experiment(tmp_path)
    config = experiment.config({"stage": "train", "zero_stage": zero_stage, "precision": precision})
    faults = dict.fromkeys(range(2), "lose_the_gradient_in_the_third_step")
    gang = start_ranks(experiment, config, world_size=2, faults=faults)
    assert gang.wait() == [65, 65], gang.text()
    assert [line for line in gang.text().splitlines() if line.startswith("changed: ")] == ["changed: 0 of 63"] * 2
    told = json.loads(experiment.termination_message(0).read_text())
    assert (told["error"]["code"], told["step"]) == ("GradientNotFinite", 2)


def test_both_stages_train_and_two_torchrun_nodes_of_a_pytorchjob_do(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path)
    run_ranks(experiment, experiment.config({"stage": "sft", "zero_stage": 0}), world_size=2)
    gang = start_nodes(experiment, experiment.config({"stage": "train", "zero_stage": 3}))
    assert gang.wait() == [0, 0], gang.text()
    sft, train = experiment.metrics("sft"), experiment.metrics("train")
    assert [row["step"] for row in sft] == [row["step"] for row in train] == [1, 2, 3, 4, 5, 6]
    assert [row["alpha"] for row in train] == pytest.approx([0.1 * step / 6 for step in range(6)])
    assert train[0]["margin"] == train[0]["margin_source"] == train[0]["margin_target"] == 0.0
    assert sft[-1]["loss"] < sft[0]["loss"]


SCRIPT = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
assert not any(name.startswith("wrpo") for name in sys.modules)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
text = tokenizer.apply_chat_template([{"role": "user", "content": "why"}], tokenize=False, add_generation_prompt=True)
ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
eos = model.generation_config.eos_token_id
print(json.dumps({"text": text, "eos": eos, "logits": model(ids).logits[0, -1].tolist()}))
"""


def test_the_trained_model_loads_with_plain_transformers_in_a_fresh_interpreter(baseline: Experiment) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = baseline.output("train") / "model"
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(directory)], capture_output=True, text=True, check=True, cwd="/"
    )
    loaded: dict[str, Any] = json.loads(answer.stdout)
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(directory))
    model.load_state_dict(baseline.weights("train"))
    assert loaded["text"].endswith("<|im_start|>assistant\n")
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(directory)(loaded["text"], add_special_tokens=False, return_tensors="pt")
    torch.testing.assert_close(torch.tensor(loaded["logits"]), model(ids.input_ids).logits[0, -1], rtol=0, atol=1e-6)
    assert loaded["eos"] == model.config.eos_token_id
