"""Alpha, the weight of the source response, as a function of the step."""

from __future__ import annotations

from wrpo_engine.config import AlphaParams


def alpha_at(step: int, num_steps: int, params: AlphaParams) -> float:
    """Return alpha for the optimizer step that follows `step` completed ones, of `num_steps` in all.

    Linear: max * step / num_steps, so the first step uses 0 and the last max * (N - 1) / N, as the released code does.
    It depends on nothing else. So a resumed run has the alpha of an uninterrupted one, and all micro-batches of a step
    share it. Raise ValueError for a step outside [0, num_steps).
    """
    if not 0 <= step < num_steps:
        raise ValueError(f"step is {step} but must be in [0, {num_steps})")
    match params.schedule:
        case "Linear":
            return params.max * step / num_steps
        case "Constant":
            return params.max
