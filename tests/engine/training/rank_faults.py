"""Faults and reports inside a rank, installed before it runs."""

from __future__ import annotations

import os
import signal
import time
from typing import Any


def sleep_for_ever_in_the_third_step() -> None:
    """This rank stops computing, but its process and its threads live on."""
    from wrpo_engine.training.backends.deepspeed import DeepSpeedBackend

    original = DeepSpeedBackend.optimizer_step
    steps = 0

    def optimizer_step(self: DeepSpeedBackend, learning_rate: float) -> float:
        nonlocal steps
        steps += 1
        if steps == 3:
            time.sleep(3600)
        return original(self, learning_rate)

    DeepSpeedBackend.optimizer_step = optimizer_step  # type: ignore[method-assign]


def fail_in_the_sixth_step() -> None:
    """This rank ends with an error that the next attempt does not meet; the checkpoint before it is complete."""
    from wrpo_engine.errors import TemporaryError
    from wrpo_engine.training import loop

    original = loop._step

    def step(run: Any, done: int, items: Any) -> Any:
        if done == 5:
            run.checkpoints.finish()
            raise TemporaryError("asked to fail")
        return original(run, done, items)

    loop._step = step  # type: ignore[assignment] # the names of its parameters differ


def say_how_models_come_to_deepspeed() -> None:
    """Print how many parameters this rank holds whole when loading is done."""
    from wrpo_engine.training.backends.deepspeed import DeepSpeedBackend

    original = DeepSpeedBackend.__init__

    def init(self: DeepSpeedBackend, model: Any, *arguments: Any) -> None:
        frozen = arguments[3] if len(arguments) > 3 else None
        for one in (model, frozen):
            if one is not None:
                whole = sum(parameter.numel() > 0 for parameter in one.parameters())
                # One write for the whole line: the ranks share a pipe, and print() may write its end apart.
                os.write(1, f"whole parameters: {whole}\n".encode())
        original(self, model, *arguments)

    DeepSpeedBackend.__init__ = init  # type: ignore[assignment,method-assign]


def say_what_comes_to_the_host() -> None:
    """Print the tensors of this rank's share, and how many collectives and copies to the host a gathering takes."""
    from collections.abc import Mapping, Sequence

    import torch.distributed as dist

    from wrpo_engine.training.backends import gathering
    from wrpo_engine.training.backends.base import Item

    original, exchange, copy = gathering.Gatherer.gather, dist.all_to_all_single, gathering.Staging.copy
    calls = {"collectives": 0, "copies": 0}

    def gather(self: gathering.Gatherer, shares: Sequence[Sequence[Item]], host: Mapping[Item, Any]) -> None:
        calls.update(collectives=0, copies=0)
        original(self, shares, host)
        for name, kind in host:
            os.write(1, f"copied: {kind.value} {name}\n".encode())
        os.write(1, f"gathered: {calls['collectives']} {calls['copies']}\n".encode())

    def count_exchange(*arguments: Any, **settings: Any) -> Any:
        calls["collectives"] += 1
        return exchange(*arguments, **settings)

    def count_copy(self: gathering.Staging, values: Any) -> Any:
        calls["copies"] += 1
        return copy(self, values)

    gathering.Gatherer.gather = gather  # type: ignore[method-assign]
    gathering.Staging.copy = count_copy  # type: ignore[method-assign]
    dist.all_to_all_single = count_exchange


def say_what_is_written_to_nvme() -> None:
    """Print the file of every tensor that DeepSpeed writes."""
    from deepspeed.runtime.swap_tensor import async_swapper, optimizer_utils, partitioned_param_swapper, utils

    original = utils.swap_out_tensors

    def swap_out_tensors(handle: Any, buffers: Any, paths: list[str]) -> None:
        for path in paths:
            os.write(1, f"written to NVMe: {path}\n".encode())
        original(handle, buffers, paths)

    for module in (async_swapper, optimizer_utils, partitioned_param_swapper):
        module.swap_out_tensors = swap_out_tensors


def compile_without_code_generation() -> None:
    """Trace and differentiate the graph as torch.compile does, and leave out the minutes of generating C++."""
    import torch

    original = torch.nn.Module.compile

    def compile_(self: torch.nn.Module, **settings: Any) -> None:
        print("compiling", flush=True)
        original(self, **{**settings, "backend": "aot_eager"})

    torch.nn.Module.compile = compile_  # type: ignore[method-assign]


def lose_the_gradient_in_the_third_step() -> None:
    """Every loss is finite, the gradient is not; print which weights and moments the optimizer step has changed."""
    import torch

    from wrpo_engine.training.backends.base import Item, TensorKind
    from wrpo_engine.training.backends.deepspeed import DeepSpeedBackend

    backward, optimizer_step = DeepSpeedBackend.backward, DeepSpeedBackend.optimizer_step
    steps = 0

    def lose(self: DeepSpeedBackend, loss: Any, *, is_last: bool) -> None:
        backward(self, loss * (float("inf") if steps == 2 else 1.0), is_last=is_last)

    def compare(self: DeepSpeedBackend, learning_rate: float) -> float:
        nonlocal steps
        steps += 1
        if steps < 3:
            return optimizer_step(self, learning_rate)
        keys = [Item(name, kind) for name in self.parameter_names() for kind in TensorKind]

        def read() -> list[torch.Tensor]:
            host = {key: self.host_tensor(key) for key in keys}
            self.gather([keys] * self._group.world_size, host)
            return list(host.values())

        before = read()
        norm = optimizer_step(self, learning_rate)
        after = read()
        changed = sum(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
        os.write(1, f"changed: {changed} of {len(keys)}\n".encode())
        return norm

    DeepSpeedBackend.backward = lose  # type: ignore[method-assign]
    DeepSpeedBackend.optimizer_step = compare  # type: ignore[method-assign]


def train_without_deepspeed() -> None:
    """One process, plain PyTorch: torch's AdamW with two groups of parameters."""
    from wrpo_engine.training import session
    from wrpo_engine.training.backends.single_process import SingleProcessBackend
    from wrpo_engine.training.models.policy import load_policy

    def make_backend(attempt: Any, base: Any, layout: Any, **_needs: Any) -> Any:
        return SingleProcessBackend(load_policy(base, attempt.params, layout), attempt.params)

    session.make_backend = make_backend


def be_asked_to_stop_in_the_first_evaluation() -> None:
    """SIGTERM comes to this rank in its first forward pass after an optimizer step."""
    from wrpo_engine.training.backends.deepspeed import DeepSpeedBackend

    optimizer_step, frozen_sequence_logps = DeepSpeedBackend.optimizer_step, DeepSpeedBackend.frozen_sequence_logps
    has_stepped = False

    def step(self: DeepSpeedBackend, learning_rate: float) -> float:
        nonlocal has_stepped
        has_stepped = True
        return optimizer_step(self, learning_rate)

    def evaluate(self: DeepSpeedBackend, batch: Any) -> Any:
        if has_stepped:
            os.kill(os.getpid(), signal.SIGTERM)
        return frozen_sequence_logps(self, batch)

    DeepSpeedBackend.optimizer_step = step  # type: ignore[method-assign]
    DeepSpeedBackend.frozen_sequence_logps = evaluate  # type: ignore[method-assign]
