"""Choice of accelerators for a stage, as recorded in its status."""

from __future__ import annotations

from pydantic import Field

from wrpo_operator.api.base import StatusModel

MAX_ALTERNATIVES = 4


class Placement(StatusModel):
    """Accelerators, parallelism and memory of a stage, chosen by the operator or set in the spec.

    Nothing here is hashed: a change re-runs no finished stage.
    """

    accelerator: str = Field(default="", max_length=128)
    """Product, flavor or profile, e.g. NVIDIA-H100-80GB-HBM3. Empty: the stage runs on CPUs."""
    resource: str = Field(default="", max_length=316)
    """Name of the requested resource, e.g. nvidia.com/gpu. Empty: none."""
    per_pod: int = Field(default=0, ge=0)
    """Accelerators of each pod."""
    pods: int = Field(default=1, ge=1)
    """Shards of a sampling or scoring stage, nodes of a training gang."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """Accelerators that share one copy of the model within a pod."""
    pipeline_parallel_size: int = Field(default=1, ge=1)
    """Groups of layers within a pod, each on its own tensor-parallel accelerators."""
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Training and scoring: tokens of one forward pass of one rank. Unset: as in the spec."""
    gradient_checkpointing: bool | None = None
    """Training: recompute activations. Unset: as in the spec."""
    offload: str | None = Field(default=None, max_length=32)
    """Training: state in host memory. Unset: as in the spec."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    """Sampling: share of an accelerator's memory that vLLM takes. Unset: as in the spec."""
    memory_gib: int | None = Field(default=None, ge=1)
    """Host memory that each pod requests, in GiB. Unset: as in the spec."""
    ephemeral_storage_gib: int | None = Field(default=None, ge=1)
    """Local disk that each pod requests, in GiB. Unset: as in the spec."""
    shared_memory_gib: int | None = Field(default=None, ge=1)
    """Size limit of /dev/shm, in GiB. Unset: none."""
    node_labels: dict[str, str] = Field(default={}, max_length=8)
    """Labels of the nodes that have this accelerator."""
    step: int = Field(default=0, ge=0)
    """Step of the ladder: how often more room was given after OutOfMemory."""
    arithmetic: str = Field(default="", max_length=512)
    """One line: why this many accelerators are needed and suffice."""
    alternatives: tuple[str, ...] = Field(default=(), max_length=MAX_ALTERNATIVES)
    """Other placements that fit, one line each."""

    @property
    def accelerators(self) -> int:
        """Return the number of accelerators of all pods."""
        return self.pods * self.per_pod
