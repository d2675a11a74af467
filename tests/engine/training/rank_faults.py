"""What goes wrong inside a rank, installed before it runs."""

from __future__ import annotations

import time


def sleep_for_ever_in_the_third_step() -> None:
    """This rank stops computing, but its process and its threads live on."""
    from wrpo_engine.training.deepspeed_backend import DeepSpeedBackend

    original = DeepSpeedBackend.optimizer_step
    steps = 0

    def optimizer_step(self: DeepSpeedBackend, learning_rate: float) -> float:
        nonlocal steps
        steps += 1
        if steps == 3:
            time.sleep(3600)
        return original(self, learning_rate)

    DeepSpeedBackend.optimizer_step = optimizer_step  # type: ignore[method-assign]
