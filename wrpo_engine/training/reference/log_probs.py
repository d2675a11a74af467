"""Reference log-probabilities: computed once before training and kept as parts of the unfinished artifact.

The policy *is* the reference before its first step. So one forward pass of the policy over the data computes them
without a second model in memory. The pass uses the micro-batches of the first epoch exactly as training does, so that
the margins of the first step are exactly 0.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import override

from wrpo_engine.artifacts import ArtifactWriter
from wrpo_engine.errors import DataError, Interrupted, MissingInputError
from wrpo_engine.training.backends.base import Backend
from wrpo_engine.training.batch.batching import BatchPlan
from wrpo_engine.training.batch.collate import Batch, collate
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.distributed.collectives import Group

_FORMAT = 3
_NAMES_SHOWN = 5
_LOG = logging.getLogger("wrpo_engine")


def reference_fingerprint(model: str, rows: Sequence[TokenRow], precision: str, layout: str) -> str:
    """Return the cache key, a digest of everything that the numbers depend on.

    These are the model's digest (weights, configuration, code), tokens, dtype, layout, type of device and the versions
    of the libraries. The split of rows into micro-batches is left out: it changes the last bit only, and a run that
    resumes with another world size must not recompute them.
    """
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    facts = [_FORMAT, model, precision, layout, device, torch.__version__, transformers.__version__]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for row in rows:
        digest.update(json.dumps([row.row_id, row.prompt, row.responses, row.prompt_has_loss]).encode())
    return digest.hexdigest()[:16]


class Reference(Protocol):
    """The loop's access to the reference's log-probabilities."""

    def logps(self, batch: Batch, rows: Sequence[int]) -> Tensor:
        """Return the summed log-probabilities [S] in nats for a micro-batch of the given rows, on its device."""
        ...


@dataclass(frozen=True, slots=True)
class InMemoryReference(Reference):
    """Computes them in every step, with a second, frozen model or with the policy's adapters disabled."""

    backend: Backend

    @override
    def logps(self, batch: Batch, rows: Sequence[int]) -> Tensor:
        return self.backend.reference_sequence_logps(batch)


@dataclass
class ReferenceLogps(Reference):
    """Row index -> summed log-probabilities of its responses, [K + 1] in fp32."""

    values: dict[int, Tensor] = field(default_factory=dict)

    @override
    def logps(self, batch: Batch, rows: Sequence[int]) -> Tensor:
        return self.batch(rows, batch.targets_R.device)

    def batch(self, rows: Sequence[int], device: torch.device) -> Tensor:
        """Return [S] in fp32 for the rows of a micro-batch; KeyError for a row that is not in the table."""
        logps_S = torch.cat([self.values[row] for row in rows])
        return logps_S if device.type == "cpu" else logps_S.pin_memory().to(device, non_blocking=True)

    def require_complete(self, rows: Sequence[TokenRow]) -> None:
        """Raise DataError with the ids of rows that are not in the table."""
        missing = [row.row_id for index, row in enumerate(rows) if index not in self.values]
        if missing:
            shown = ", ".join(missing[:_NAMES_SHOWN]) + (", ..." if len(missing) > _NAMES_SHOWN else "")
            raise DataError(
                f"the reference's log-probabilities lack {len(missing)} of {len(rows)} rows: {shown}",
                code="ReferenceIncomplete",
                hint="Remove the stage's `reference` directory; the next attempt recomputes it.",
            )


@dataclass(frozen=True)
class ReferenceCache:
    """Published parts of the table; an interrupted pass resumes after its last part."""

    output: ArtifactWriter
    prefix: str
    """Ends with a slash."""

    def load(self, num_rows: int, responses_per_row: int) -> ReferenceLogps:
        """Return the table of all undamaged parts; a damaged part is logged, and its rows are recomputed."""
        table = ReferenceLogps()
        for name in self.output.published(f"{self.prefix}part-"):
            try:
                rows_N, logps_NK = _read_part(self.output.fetch(name))
            except (OSError, MissingInputError, SafetensorError, ValueError) as error:
                _LOG.warning("%s is damaged (%s); its rows are recomputed", name, error)
                continue
            for index, logps_K in zip(rows_N.tolist(), logps_NK, strict=True):
                if 0 <= index < num_rows and len(logps_K) == responses_per_row:
                    table.values[int(index)] = logps_K
        return table

    def add(self, values: Mapping[int, Tensor]) -> None:
        """Publish the given rows as one part: row index -> [K + 1] in fp32."""
        rows = sorted(values)
        rows_N, logps_NK = torch.tensor(rows), torch.stack([values[row] for row in rows])
        # The rows determine the name, so that a part that is written twice is the same file.
        name = hashlib.sha256(np.asarray(rows, dtype=np.int64).tobytes()).hexdigest()[:16]
        metadata = {"sha256": _content_digest(rows_N, logps_NK)}
        self.output.publish(
            f"{self.prefix}part-{name}.safetensors",
            lambda path: save_file({"rows": rows_N, "logps": logps_NK}, path, metadata=metadata),
            # Replaces a damaged part.
            replace=True,
        )


def _content_digest(rows_N: Tensor, logps_NK: Tensor) -> str:
    return hashlib.sha256(rows_N.numpy().tobytes() + logps_NK.numpy().tobytes()).hexdigest()


def _read_part(path: Path) -> tuple[Tensor, Tensor]:
    with safe_open(path, framework="pt") as file:
        rows_N, logps_NK = file.get_tensor("rows"), file.get_tensor("logps")
        expected = (file.metadata() or {}).get("sha256")
    if _content_digest(rows_N, logps_NK) != expected:
        raise ValueError("the content does not match its sha256")
    return rows_N, logps_NK


@dataclass(frozen=True, slots=True)
class ReferencePass:
    """The forward pass of the untrained policy over the rows of a run."""

    backend: Backend
    rows: Sequence[TokenRow]
    plan: BatchPlan
    group: Group
    on_micro_batch: Callable[[], None] = lambda: None


def compute_reference(
    forward: ReferencePass,
    cache: ReferenceCache,
    *,
    steps_per_part: int,
    should_stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[int, int], None] = lambda _done, _total: None,
) -> ReferenceLogps:
    """Return the table of all rows and compute the rows that the cache lacks; all ranks call this together.

    Raise Interrupted after a stop and DataError for log-probabilities that are not finite.
    """
    backend, rows, plan, group = forward.backend, forward.rows, forward.plan, forward.group
    table = group.on_main(lambda: cache.load(len(rows), len(rows[0].responses)))
    fresh: dict[int, Tensor] = {}
    for step in range(plan.steps_per_epoch):
        if all(row in table.values for row in plan.step_rows(step)):
            continue
        for micro_batch in plan.micro_batches(step)[group.rank]:
            batch = collate([rows[row] for row in micro_batch.rows], plan.layout).to(backend.device)
            logps_S = backend.reference_sequence_logps(batch).to("cpu")
            forward.on_micro_batch()
            if not micro_batch.is_filler:
                per_row = logps_S.view(len(micro_batch.rows), -1)
                fresh.update(zip(micro_batch.rows, (values.clone() for values in per_row), strict=True))
        on_step(step + 1, plan.steps_per_epoch)
        is_last = step + 1 == plan.steps_per_epoch
        stopping = any(group.gather(should_stop()))
        if stopping or is_last or (step + 1) % steps_per_part == 0:
            _publish(fresh, table, cache, group)
            fresh = {}
        if stopping and not is_last:
            raise Interrupted
    if fresh or group.world_size > 1:
        _publish(fresh, table, cache, group)
    table.require_complete(rows)
    return table


def _publish(fresh: dict[int, Tensor], table: ReferenceLogps, cache: ReferenceCache, group: Group) -> None:
    everyone: dict[int, Tensor] = {}
    for part in group.gather(fresh):
        everyone.update(part)
    if not everyone:
        return
    bad = sorted(row for row, values in everyone.items() if not bool(torch.isfinite(values).all()))
    if bad:
        raise DataError(
            f"the model's log-probabilities of {len(bad)} rows are not finite; the first has the index {bad[0]}",
            code="ModelNotFinite",
            hint="Check the SFT model: its weights overflow or are damaged.",
        )
    table.values.update(everyone)
    group.on_main(lambda: cache.add(everyone))
