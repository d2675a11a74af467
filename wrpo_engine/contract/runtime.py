"""How stages are run: settings of all of them that do not change what is computed."""

from __future__ import annotations

from pydantic import Field, JsonValue

from wrpo_engine.contract.base import Role
from wrpo_engine.contract.benchmarks import JudgeExecution
from wrpo_engine.contract.data import ModelUse, ScoreExecution
from wrpo_engine.contract.sampling import ShardExecution, SourceExecution
from wrpo_engine.contract.training import BothExecution, PreferenceExecution, SharedExecution
from wrpo_engine.contract.types import Tokens

SPEED_ENGINE_ARGS = frozenset(
    {
        "async_scheduling",
        "block_size",
        "compilation_config",
        "cpu_offload_gb",
        "data_parallel_size",
        "disable_custom_all_reduce",
        "distributed_executor_backend",
        "enable_chunked_prefill",
        "enable_expert_parallel",
        "enable_prefix_caching",
        "enforce_eager",
        "kv_cache_memory_bytes",
        "long_prefill_token_threshold",
        "max_cudagraph_capture_size",
        "max_num_batched_tokens",
        "max_num_seqs",
        "max_parallel_loading_workers",
        "pipeline_parallel_size",
        "scheduling_policy",
    }
)
"""Arguments of vLLM's engine that affect speed and memory, not the responses. Changing them re-runs no stage. The
responses still differ by the rounding that another batch or another number of devices brings."""


class Runtime(
    ShardExecution,
    SharedExecution,
    BothExecution,
    PreferenceExecution,
    ScoreExecution,
    SourceExecution,
    JudgeExecution,
    role=Role.EXECUTION,
):
    """How a stage is run; none of it changes what is computed, so none of it is hashed.

    The shard of a pod is JOB_COMPLETION_INDEX. A collective, rendezvous or hang timeout ends a rank with exit code 75.
    """

    prefetch_batches: int = Field(default=2, ge=0)
    """Training: micro-batches that are collated ahead by another thread."""
    overlap_communication: bool = False
    """Training: reduce gradients at zeroStage 3 on a separate stream; same results. Not measured yet."""
    peak_flops: float | None = Field(default=None, gt=0)
    """Training: floating-point operations per second of one device, for MFU; unset: known GPUs' own."""
    engine_args: dict[str, JsonValue] = Field(default_factory=dict)
    """Sampling: arguments of vLLM's engine that change only its speed and memory, see SPEED_ENGINE_ARGS. Evaluation:
    all that sampling has."""
    context_limit: Tokens | None = None
    """Evaluation: sampling.maxModelLength, the limit of prompt and response in tokens. Unset: each model's limit. This
    and the arguments are not hashed, because the training data of the evaluated models were sampled with them."""
    model_uses: tuple[ModelUse, ...] = ()
    """Fetching: uses of the model. A model that cannot serve one of them is refused."""
    model_sections: dict[str, str] = Field(default_factory=dict)
    """Evaluation: section of the experiment's spec that names a model, a reward or a judge, by the parameter: e.g.
    evaluation.systems[big].model by model or members[0], evaluation.judges[gpt4] by the model of a judge stage. Errors
    name it."""
