"""Peer: a plain implementation of the released WRPO recipe, written only for this comparison.

Every response is a separate sequence with a copy of the prompt, padded to the longest of the pass. The logits of all
positions are in fp32, followed by a log-softmax over all of them and a gather. A second, frozen model runs in every
step. It uses none of the engine's code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.common.memory import PeakMemory
from benchmarks.common.process import each, worker_main
from benchmarks.training.workload import (
    ADAM_BETAS,
    ADAM_EPSILON,
    BETA,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    Plan,
    Row,
    alpha,
    clock_of,
    passes,
)

IGNORED = -100


def pad(rows: Sequence[Row], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, attention mask and labels, [rows * responses, longest]; responses of one kind are adjacent."""
    sequences = [(row.prompt, row.responses[kind]) for kind in range(len(rows[0].responses)) for row in rows]
    longest = max(len(prompt) + len(response) for prompt, response in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for index, (prompt, response) in enumerate(sequences):
        end = len(prompt) + len(response)
        ids[index, :end] = torch.tensor([*prompt, *response])
        mask[index, :end] = 1
        labels[index, len(prompt) : end] = ids[index, len(prompt) : end]
    return ids.to(device), mask.to(device), labels.to(device)


def response_logps(model: Any, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    targets = labels[:, 1:]
    counted = targets != IGNORED
    all_logps = logits.log_softmax(dim=-1)
    chosen = torch.gather(all_logps, 2, targets.masked_fill(~counted, 0).unsqueeze(-1)).squeeze(-1)
    return (chosen * counted).sum(dim=-1)


def losses(policy: Tensor, reference: Tensor, num_responses: int, weight: float) -> Tensor:
    """Return DPO's loss per pair, or WRPO-DPO's per triple with `weight` on the source response."""
    rewards = (BETA * (policy - reference)).view(num_responses, -1)
    if num_responses == 2:
        margin = rewards[0] - rewards[1]
    else:
        margin = weight * rewards[0] + (1 - weight) * rewards[1] - rewards[2]
    return -torch.nn.functional.logsigmoid(margin)


def load(directory: str, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).to(device).train()


def work(specification: dict[str, Any]) -> dict[str, Any]:
    plan = Plan.from_json(specification["plan"])
    clock = clock_of(specification)
    rank, world_size = _join()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy, reference = load(plan.model_dir, device), load(plan.model_dir, device).requires_grad_(requires_grad=False)
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=LEARNING_RATE, betas=ADAM_BETAS, eps=ADAM_EPSILON, weight_decay=0.0, fused=True
    )
    rows = plan.rows()
    size = plan.case.triples_per_step

    def accumulate(step: int) -> float:
        step_rows = rows[step * size : (step + 1) * size][rank::world_size]
        total = 0.0
        for batch in passes(step_rows, plan.case.triples_per_pass):
            ids, mask, labels = pad(batch, device)
            with torch.no_grad():
                reference_logps = response_logps(reference, ids, mask, labels)
            policy_logps = response_logps(policy, ids, mask, labels)
            weight = alpha(step, plan.num_steps)
            loss = losses(policy_logps, reference_logps, plan.case.num_responses, weight).sum() / size
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    seconds, reported = [], []
    for step in range(plan.num_optimizer_steps):
        started = clock()
        loss = accumulate(step)
        loss = _sum_over_ranks(loss, parameters)
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _synchronize()
        seconds.append(clock() - started)
        reported.append(loss)
    memory, peak = PeakMemory(), None
    if plan.measure_memory:
        accumulate(plan.num_optimizer_steps)
        memory.start()
        accumulate(plan.num_optimizer_steps + 1)
        peak = memory.stop()
    if dist.is_initialized():
        dist.destroy_process_group()
    return {
        "step_seconds": seconds[plan.warmup_steps :],
        "losses": reported,
        "step_memory": peak,
        "memory_source": memory.source,
    }


def _join() -> tuple[int, int]:
    import os

    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return int(os.environ.get("RANK", "0")), world_size


def _sum_over_ranks(loss: float, parameters: Sequence[torch.nn.Parameter]) -> float:
    if not dist.is_initialized():
        return loss
    for parameter in parameters:
        dist.all_reduce(parameter.grad)
    total = torch.tensor(loss, dtype=torch.float64)
    dist.all_reduce(total)
    return float(total)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    worker_main(each(work))
