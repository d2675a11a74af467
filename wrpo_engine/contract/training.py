"""Parameters of SFT and of preference optimisation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wrpo_engine.contract.base import Declared, Role
from wrpo_engine.contract.types import ATOMIC, BatchTokens, LearningRate, Ratio, Seconds, Seed, Steps


class LoraParams(Declared, role=Role.COMPUTED):
    """Low-rank adapters (PEFT). The export contains the merged model and, separately, the adapter."""

    rank: int = Field(default=16, ge=1, le=4096)
    """Rank of the adapters."""
    alpha: float = Field(default=32.0, gt=0, le=65536)
    """The output of the adapters is scaled by alpha / rank."""
    target_modules: tuple[Annotated[str, Field(min_length=1, max_length=128)], ...] = Field(
        default=(), max_length=32, json_schema_extra=ATOMIC
    )
    """Names of linear layers, e.g. q_proj. Empty: all but the output head."""


class HoldoutParams(Declared, role=Role.COMPUTED):
    """Rows excluded from training, and the use of their loss."""

    fraction: float = Field(default=0.05, gt=0, lt=1)
    """Share of the rows that is held out, chosen by the seed."""
    every_steps: Steps = 50
    """Optimizer steps between evaluations; the last step is always followed by one."""
    patience: int | None = Field(default=None, ge=1, le=10000)
    """Early stopping: stop after this number of evaluations without a better loss. Unset: never."""
    keep_best: bool = False
    """Export the weights with the lowest held-out loss instead of the last ones."""


class AlphaParams(Declared, role=Role.COMPUTED):
    """The weight a of the source response (WRPO objectives only)."""

    schedule: Literal["Linear", "Constant"] = "Linear"
    """Linear: a(step) = max * step / N over the N optimizer steps. Constant: a = max."""
    max: Ratio = 0.1
    """Largest weight of the source response. 0 is DPO on the target's own pair, 1 ignores the target's best."""


class OptimizerFields(Declared, role=Role.COMPUTED):
    """AdamW and its data, for SFT and for preference training."""

    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """Decay of the learning rate after the warm-up."""
    warmup_ratio: Ratio = 0.1
    """Share of the steps over which the learning rate rises to its peak."""
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 0.0
    """AdamW's weight decay of all weights except biases and norms."""
    max_grad_norm: float = Field(default=1.0, gt=0, le=1000000)
    """Gradients are clipped to this norm."""
    epochs: int = Field(default=1, ge=1, le=1000)
    """Passes over the rows."""
    global_batch_size: int = Field(default=128, ge=1, le=1048576)
    """Rows (SFT) or triples (preference) of one optimizer step, over all pods. Independent of nodes and GPUs."""
    max_length: int = Field(default=2048, ge=2, le=1048576)
    """Maximum tokens of prompt and response together. Responses are truncated separately, which is counted."""
    max_prompt_length: int = Field(default=1800, ge=1, le=1048576)
    """Maximum tokens of the prompt; must be below maxLength."""
    seed: Seed = 42
    """Seed of the order of rows."""
    shuffle: bool = True
    """False: rows in the order of the artifact, every epoch."""
    lora: LoraParams | None = None
    """Train low-rank adapters only. Unset: all weights."""
    holdout: HoldoutParams | None = None
    """Evaluate on held-out rows while training. Unset: never."""


class SharedFields(Declared, role=Role.COMPUTED):
    """Parameters of preference optimisation that SFT inherits unless it sets them."""

    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format of forward and backward passes; master weights are float32. On CPUs float32 is faster."""
    zero_stage: Literal[0, 1, 2, 3] = 3
    """What DeepSpeed shards over the ranks: 0 nothing, 1 optimizer state, 2 gradients too, 3 parameters too."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    gradient_accumulation_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format in which the gradients of a step's micro-batches are added. bfloat16 takes 2 bytes less for each
    parameter, and rounds every sum to 8 bits; it needs precision bfloat16."""
    optimizer_moments: Literal["float32", "bfloat16", "8bit"] = "float32"
    """Number format of AdamW's two moments: 8, 4 or 2 bytes for each parameter. Rounded at random, so that the expected
    values are kept; checkpoints hold them in float32."""


class SharedExecution(Declared, role=Role.EXECUTION):
    """Execution of preference optimisation, which SFT inherits unless it sets it."""

    offload: Literal["none", "optimizer", "optimizer-and-parameters"] = "none"
    """State that is kept in CPU memory instead of GPU memory."""
    micro_batch_tokens: BatchTokens = 8192
    """Upper bound of tokens in one forward pass of one rank. Reduce it if memory is exhausted."""
    checkpoint_every_steps: Steps = 50
    """Optimizer steps between checkpoints: the most that a killed gang loses."""


class BothExecution(Declared, role=Role.EXECUTION):
    """Execution of both training stages."""

    keep_checkpoints: int = Field(default=2, ge=1, le=100)
    """Number of most recent checkpoints to keep; the best one is kept too if holdout.keepBest is set."""
    micro_batch_size: int | None = Field(default=None, ge=1, le=65536)
    """Rows in one forward pass of one rank, instead of microBatchTokens."""
    layout: Literal["auto", "shared-prefix", "packed", "padded"] = "auto"
    """Layout of sequences in a forward pass. shared-prefix computes a prompt once for all its responses; auto selects
    the best layout that the model's architecture supports."""
    attention: Literal["auto", "flex", "segments"] = "auto"
    """Attention in the layouts other than padded. auto: on GPUs FlexAttention, which every rank tries before the first
    step; if it fails on any, all use segments. flex: an error instead. segments: plain attention by segment."""
    torch_compile: bool = False
    """Compile the model with torch.compile."""
    offload_nvme_path: str | None = Field(default=None, max_length=512, pattern=r"^/[A-Za-z0-9._/-]*$")
    """Offload to this directory of a local disk instead of the host's memory (zeroStage 3)."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        default=("tensorboard",), max_length=3, json_schema_extra=ATOMIC
    )
    """Destinations of metrics in addition to metrics.jsonl. Keys come from spec.env."""
    collective_timeout_seconds: Seconds = 1800
    """Timeout of collective operations. On expiry the rank exits and the gang is recreated."""
    rendezvous_timeout_seconds: Seconds = 900
    """Rendezvous timeout of the pods of a gang. On expiry the error lists the missing nodes."""
    hang_timeout_seconds: Seconds = 1200
    """Hang timeout. If no micro-batch completes within this time, ranks write their stacks to their logs and exit."""


class PreferenceExecution(Declared, role=Role.EXECUTION):
    """Execution of preference optimisation only."""

    reference: Literal["precomputed", "in-memory"] = "precomputed"
    """Reference log-probabilities from one pass before training, or from a second, frozen model in every step, which
    costs memory and time."""


class SftFields(Declared, role=Role.COMPUTED):
    """Parameters of SFT only, and its learning rate."""

    learning_rate: LearningRate = 7e-6
    """Peak learning rate."""
    loss_tokens: Literal["Response", "All"] = "Response"
    """Tokens that contribute to the loss. All: also those of the prompt, as in the paper's released code."""


class PreferenceFields(Declared, role=Role.COMPUTED):
    """Parameters of preference optimisation only, and its learning rate."""

    alpha: AlphaParams = AlphaParams()
    """The weight of the source response."""
    beta: float = Field(default=0.01, gt=0, le=1000)
    """Strength of the reward; in the DPO forms, of the pull to the reference. Refused in the IPO forms unless 0.01."""
    gamma: float = Field(default=0.0, ge=0, le=1000)
    """Target margin of the SimPO forms, in units of the reward. Refused with other objectives unless 0."""
    tau: float = Field(default=0.1, gt=0, le=1000)
    """Regularisation of the IPO forms. Refused with other objectives unless 0.1."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Assumed share of pairs with swapped labels (DPO forms). Refused with other objectives unless 0."""
    length_normalized: bool = False
    """Divide each response's reward by its length (DPO forms). Refused with other objectives."""
    ipo_mean: bool = False
    """Mean instead of summed log-ratios (IPO forms). Refused with other objectives."""
    nll_weight: float = Field(default=0.0, ge=0, le=1000)
    """Weight of an added likelihood term on the best source response (the target's best if there is no source)."""
    learning_rate: LearningRate = 3e-7
    """Peak learning rate."""
