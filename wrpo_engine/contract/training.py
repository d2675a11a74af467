"""Parameters of SFT and of preference optimisation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wrpo_engine.contract.base import Declared, Role
from wrpo_engine.contract.types import ATOMIC, BatchTokens, LearningRate, Ratio, Seconds, Seed, Steps


class LoraParams(Declared, role=Role.COMPUTED):
    """Low-rank adapters (PEFT). The trained model is exported merged, the adapter beside it."""

    rank: int = Field(default=16, ge=1, le=4096)
    """Rank of the adapters."""
    alpha: float = Field(default=32.0, gt=0, le=65536)
    """Their scale is alpha / rank."""
    target_modules: tuple[Annotated[str, Field(min_length=1, max_length=128)], ...] = Field(
        default=(), max_length=32, json_schema_extra=ATOMIC
    )
    """Names of linear layers, e.g. q_proj. Empty: all but the output head."""


class HoldoutParams(Declared, role=Role.COMPUTED):
    """Rows kept out of training, and what their loss decides."""

    fraction: float = Field(default=0.05, gt=0, lt=1)
    """Share of the rows, chosen by the seed."""
    every_steps: Steps = 50
    """Optimizer steps between evaluations; the last step is always followed by one."""
    patience: int | None = Field(default=None, ge=1, le=10000)
    """Early stopping: end after so many evaluations without a better loss. Unset: never."""
    keep_best: bool = False
    """Export the weights with the lowest held-out loss instead of the last ones."""


class AlphaParams(Declared, role=Role.COMPUTED):
    """The weight a of the source response (WRPO objectives only)."""

    schedule: Literal["Linear", "Constant"] = "Linear"
    """Linear: a(step) = max * step / N over the N optimizer steps. Constant: a = max."""
    max: Ratio = 0.1
    """Largest weight of the source response. 0 is DPO on the target's own pair, 1 leaves the target's best out."""


class OptimizerFields(Declared, role=Role.COMPUTED):
    """AdamW and its data, as SFT and preference training each have them."""

    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_ratio: Ratio = 0.1
    """Share of the steps over which the learning rate rises to its peak."""
    weight_decay: Ratio = 0.0
    """AdamW's weight decay, of all weights but biases and norms."""
    max_grad_norm: float = Field(default=1.0, gt=0, le=1000000)
    """Gradients are clipped to this norm."""
    epochs: int = Field(default=1, ge=1, le=1000)
    """Passes over the rows."""
    global_batch_size: int = Field(default=128, ge=1, le=1048576)
    """Rows (SFT) or triples (preference) of one optimizer step, over all pods. Independent of nodes and GPUs."""
    max_length: int = Field(default=2048, ge=2, le=1048576)
    """Tokens of prompt and response together; each response is cut by itself, and cuts are counted."""
    max_prompt_length: int = Field(default=1800, ge=1, le=1048576)
    """Tokens of the prompt; must be below maxLength."""
    seed: Seed = 42
    """Decides the order of rows."""
    shuffle: bool = True
    """False: rows in the order of the artifact, every epoch."""
    lora: LoraParams | None = None
    """Train low-rank adapters only. Unset: all weights."""
    holdout: HoldoutParams | None = None
    """Evaluate on held-out rows while training. Unset: never."""


class SharedFields(Declared, role=Role.COMPUTED):
    """Parameters of preference optimisation that SFT takes too unless it sets them."""

    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format of forward and backward passes; master weights are float32. On CPUs float32 is faster."""
    zero_stage: Literal[0, 1, 2, 3] = 3
    """What DeepSpeed shards over the ranks: 0 nothing, 1 optimizer state, 2 gradients too, 3 parameters too."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""


class SharedExecution(Declared, role=Role.EXECUTION):
    """How preference optimisation runs, and SFT too unless it sets them."""

    offload: Literal["none", "optimizer", "optimizer-and-parameters"] = "none"
    """What is kept in CPU memory instead of the GPU's."""
    micro_batch_tokens: BatchTokens = 8192
    """Upper bound of tokens in one forward pass of one rank. Lower it when memory runs out."""
    checkpoint_every_steps: Steps = 50
    """Optimizer steps between checkpoints: what a killed gang loses at most."""


class BothExecution(Declared, role=Role.EXECUTION):
    """How both training stages run."""

    keep_checkpoints: int = Field(default=2, ge=1, le=100)
    """The newest so many checkpoints are kept, so that a damaged one costs little, and the best one if holdout.keepBest
    is set."""
    micro_batch_size: int | None = Field(default=None, ge=1, le=65536)
    """Rows in one forward pass of one rank, instead of the bound of tokens."""
    layout: Literal["auto", "shared-prefix", "packed", "padded"] = "auto"
    """How sequences are laid out in a forward pass. shared-prefix computes a prompt once for all its responses; auto
    takes the best that the model's architecture supports."""
    torch_compile: bool = False
    """Compile the model with torch.compile."""
    offload_nvme_path: str | None = Field(default=None, max_length=512, pattern=r"^/[A-Za-z0-9._/-]*$")
    """Offload to this directory of a local disk instead of the host's memory (zeroStage 3)."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        default=("tensorboard",), max_length=3, json_schema_extra=ATOMIC
    )
    """Where metrics go beside metrics.jsonl. Keys come from spec.env."""
    collective_timeout_seconds: Seconds = 1800
    """A rank that waits longer for its peers ends, and the gang is recreated."""
    rendezvous_timeout_seconds: Seconds = 900
    """Pods of a gang wait so long for each other; then the missing ones are named."""
    hang_timeout_seconds: Seconds = 1200
    """Without a finished micro-batch for so long, ranks write their stacks to their logs and end."""


class PreferenceExecution(Declared, role=Role.EXECUTION):
    """How preference optimisation alone runs."""

    reference: Literal["precomputed", "in-memory"] = "precomputed"
    """Reference log-probabilities from one pass before training, or from a second, frozen model in every step, which
    takes its memory and time."""


class SftFields(Declared, role=Role.COMPUTED):
    """What only SFT has, and its own learning rate."""

    learning_rate: LearningRate = 7e-6
    """Peak learning rate."""
    loss_tokens: Literal["Response", "All"] = "Response"
    """All: the prompt's tokens carry loss too, as in the paper's released code."""


class PreferenceFields(Declared, role=Role.COMPUTED):
    """What only preference optimisation has, and its own learning rate."""

    alpha: AlphaParams = AlphaParams()
    """The weight of the source response."""
    beta: float = Field(default=0.01, gt=0, le=1000)
    """Strength of the reward; in the DPO forms, of the pull to the reference. Refused in the IPO forms unless 0.01."""
    gamma: float = Field(default=0.0, ge=0, le=1000)
    """Target margin of the SimPO forms, in units of the reward. Refused with other objectives unless 0."""
    tau: float = Field(default=0.1, gt=0, le=1000)
    """Regularisation of the IPO forms. Refused with other objectives unless 0.1."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs taken as labelled the wrong way (DPO forms). Refused with other objectives unless 0."""
    length_normalized: bool = False
    """Divide each response's reward by its length (DPO forms). Refused with other objectives."""
    ipo_mean: bool = False
    """Mean instead of summed log-ratios (IPO forms). Refused with other objectives."""
    nll_weight: float = Field(default=0.0, ge=0, le=1000)
    """Weight of an added likelihood term on the best source response (the target's best where there is no source)."""
    learning_rate: LearningRate = 3e-7
    """Peak learning rate."""
