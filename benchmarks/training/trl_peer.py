"""Peer: TRL's DPOTrainer on the pairs with given tokens, without shuffling, with its other defaults.

Gradient checkpointing, which is on by default, is off on both sides, because it would only slow the peer down.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks.common.memory import PeakMemory
from benchmarks.common.process import each, worker_main
from benchmarks.training.workload import ADAM_BETAS, ADAM_EPSILON, BETA, LEARNING_RATE, MAX_GRAD_NORM, Plan, clock_of


def _tokenizer(vocabulary: int) -> Any:
    """Return a tokenizer, from which TRL only reads the padding token."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    padding, begin, end = "<pad>", "<s>", "</s>"
    words = {padding: 0, begin: 1, end: 2} | {f"t{index}": index for index in range(3, vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token=padding))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=padding, bos_token=begin, eos_token=end)


def _trainer_class() -> Any:
    from trl import DPOTrainer

    class TokenTrainer(DPOTrainer):  # type: ignore[misc]
        """DPOTrainer that takes token ids."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    return TokenTrainer


def _callback(
    plan: Plan, read_clock: Callable[[], float], memory: PeakMemory, seconds: list[float], peaks: list[int]
) -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Callback that times optimizer steps. The last two measure memory and do not change weights."""

        def __init__(self) -> None:
            self.trainer: Any = None
            self._started = 0.0

        def on_step_begin(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == plan.num_optimizer_steps:
                _freeze(self.trainer)
            if state.global_step == plan.num_optimizer_steps + 1:
                memory.start()
            self._started = read_clock()

        def on_pre_optimizer_step(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == plan.num_optimizer_steps + 1:
                peaks.append(memory.stop())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(read_clock() - self._started)

    return Clock()


def _freeze(trainer: Any) -> None:
    """Keep the gradients, and do not update the weights."""

    def nothing(*_: Any, **__: Any) -> None:
        return None

    trainer.optimizer.step = nothing
    trainer.optimizer.zero_grad = nothing
    trainer.model.zero_grad = nothing
    trainer.model_wrapped.zero_grad = nothing


def work(specification: dict[str, Any]) -> dict[str, Any]:
    from datasets import Dataset
    from trl import DPOConfig

    plan = Plan.from_json(specification["plan"])
    case = plan.case
    rows = plan.rows()
    columns = {
        "prompt_ids": [list(row.prompt) for row in rows],
        "chosen_ids": [list(row.responses[0]) for row in rows],
        "rejected_ids": [list(row.responses[1]) for row in rows],
    }
    seconds: list[float] = []
    peaks: list[int] = []
    memory = PeakMemory()
    with tempfile.TemporaryDirectory() as directory:
        config = DPOConfig(
            output_dir=directory,
            per_device_train_batch_size=case.triples_per_pass,
            gradient_accumulation_steps=case.triples_per_step // case.triples_per_pass,
            max_steps=plan.num_steps,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            adam_beta1=ADAM_BETAS[0],
            adam_beta2=ADAM_BETAS[1],
            adam_epsilon=ADAM_EPSILON,
            weight_decay=0.0,
            max_grad_norm=MAX_GRAD_NORM,
            optim="adamw_torch_fused",
            beta=BETA,
            bf16=specification.get("precision") == "bfloat16",
            fp16=False,
            gradient_checkpointing=False,
            train_sampling_strategy="sequential",
            precompute_ref_log_probs=specification.get("precompute", False),
            precompute_ref_batch_size=case.triples_per_pass,
            max_length=None,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        clock = _callback(plan, clock_of(specification), memory, seconds, peaks)
        trainer = _trainer_class()(
            model=_load(plan.model_dir),
            args=config,
            train_dataset=Dataset.from_dict(columns),
            processing_class=_tokenizer(case.model.vocabulary),
            callbacks=[clock],
        )
        clock.trainer = trainer
        trainer.train()
        logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "step_seconds": seconds[plan.warmup_steps : plan.num_optimizer_steps],
        "losses": logged[: plan.num_optimizer_steps],
        "step_memory": peaks[0] if peaks else None,
        "memory_source": memory.source,
    }


def _load(directory: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


if __name__ == "__main__":
    worker_main(each(work))
