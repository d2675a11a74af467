"""The reference's log-probabilities: computed once, before training, and kept in the work directory.

The policy *is* the reference before its first step, so one forward pass of the policy over the data gives them, and no
second model is ever in memory. The pass runs over the micro-batches of the first epoch exactly as training will, so
that the margins of the first step are not nearly but exactly 0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from wrpo_engine.artifacts.manifest import sha256_of
from wrpo_engine.errors import DataError, Interrupted
from wrpo_engine.training.backend import Backend
from wrpo_engine.training.batching import BatchPlan
from wrpo_engine.training.collate import collate
from wrpo_engine.training.collectives import Group
from wrpo_engine.training.rows import TokenRow

_FORMAT = 1
_NAMES_SHOWN = 5


def reference_fingerprint(model_files: Sequence[Path], rows: Sequence[TokenRow], precision: str) -> str:
    """Return the cache key: weights, tokens and dtype; everything else leaves the numbers as they are."""
    digest = hashlib.sha256(f"{_FORMAT} {precision}\n".encode())
    for path in sorted(model_files):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    for row in rows:
        digest.update(json.dumps([row.row_id, row.prompt, row.responses]).encode())
    return digest.hexdigest()[:16]


@dataclass
class ReferenceLogps:
    """Row index -> summed log-probabilities of its responses, [K + 1] in fp32."""

    values: dict[int, Tensor] = field(default_factory=dict)

    def batch(self, rows: Sequence[int], device: torch.device) -> Tensor:
        """Return [S] for the rows of a micro-batch."""
        return torch.cat([self.values[row] for row in rows]).to(device)

    def require_complete(self, rows: Sequence[TokenRow]) -> None:
        missing = [row.row_id for index, row in enumerate(rows) if index not in self.values]
        if missing:
            shown = ", ".join(missing[:_NAMES_SHOWN]) + (", ..." if len(missing) > _NAMES_SHOWN else "")
            raise DataError(
                f"the reference's log-probabilities lack {len(missing)} of {len(rows)} rows: {shown}",
                code="ReferenceIncomplete",
                hint="Remove the stage's `reference` directory; it is computed anew.",
            )


@dataclass(frozen=True)
class ReferenceCache:
    """Parts of the table on disk; a killed pass continues after its last part."""

    directory: Path

    def load(self, num_rows: int, responses_per_row: int) -> ReferenceLogps:
        table = ReferenceLogps()
        for path in sorted(self.directory.glob("part-*.safetensors")):
            try:
                part = load_file(path)
            except (OSError, SafetensorError) as error:
                raise DataError(
                    f"{path} is damaged: {error}", code="ReferenceDamaged", hint="Remove it; it is computed anew."
                ) from error
            for index, logps in zip(part["rows"].tolist(), part["logps"], strict=True):
                if 0 <= index < num_rows and len(logps) == responses_per_row:
                    table.values[int(index)] = logps
        return table

    def add(self, values: Mapping[int, Tensor]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        rows = sorted(values)
        # Named by content: a part that is written twice is the same file.
        name = hashlib.sha256(np.asarray(rows, dtype=np.int64).tobytes()).hexdigest()[:16]
        final = self.directory / f"part-{name}.safetensors"
        temporary = final.with_name(f".tmp-{final.name}")
        save_file({"rows": torch.tensor(rows), "logps": torch.stack([values[row] for row in rows])}, temporary)
        temporary.replace(final)


def compute_reference(
    backend: Backend,
    rows: Sequence[TokenRow],
    plan: BatchPlan,
    cache: ReferenceCache,
    group: Group,
    *,
    steps_per_part: int,
    should_stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[int, int], None] = lambda _done, _total: None,
) -> ReferenceLogps:
    """Return the table of all rows, computing what the cache lacks; called on all ranks together."""
    table = group.on_main(lambda: cache.load(len(rows), len(rows[0].responses)))
    fresh: dict[int, Tensor] = {}
    for step in range(plan.steps_per_epoch):
        if all(row in table.values for row in plan.step_rows(step)):
            continue
        for micro_batch in plan.micro_batches(step)[group.rank]:
            batch = collate([rows[row] for row in micro_batch.rows], plan.layout).to(backend.device)
            logps_S = backend.frozen_sequence_logps(batch).to("cpu")
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
            f"the model gives log-probabilities that are not finite for {len(bad)} rows, the first of index {bad[0]}",
            code="ModelNotFinite",
            hint="Check the SFT model: its weights overflow or are damaged.",
        )
    table.values.update(everyone)
    group.on_main(lambda: cache.add(everyone))
