"""The engine's own forward pass over a corpus: the likeliest tokens of every label, logits of one chunk at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from wrpo_engine.contract.fusing import RepresentParams
from wrpo_engine.fusing.represented import Top
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.scoring.batching import token_batches
from wrpo_engine.training.batch.collate import collate
from wrpo_engine.training.batch.layout import Layout
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.distributed.collectives import computing_device
from wrpo_engine.training.models.logps import Head, HeadScaling, top_logps
from wrpo_engine.training.models.model import LogpModel, load_causal_lm

_CPU_BATCH_TOKENS = 1024
"""Maximum on a CPU, where more tokens per forward pass only take memory."""


class EngineForward:
    """A model in memory. Batches are padded and fixed by the rows, so that no interruption changes a result."""

    def __init__(self, model: ResolvedModel, params: RepresentParams, *, batch_tokens: int) -> None:
        causal_lm = load_causal_lm(
            model.path,
            precision=params.precision,
            gradient_checkpointing=False,
            trust_remote_code=model.trust_remote_code,
        )
        self._device = computing_device()
        self._model = LogpModel(causal_lm.to(self._device).eval(), Layout.PADDED)
        self._top_k = params.top_k
        self._budget = batch_tokens if self._device.type == "cuda" else min(batch_tokens, _CPU_BATCH_TOKENS)

    def tops(self, rows: Sequence[TokenRow], on_row: Callable[[int], None]) -> Iterator[tuple[int, Top]]:
        """Yield (index, likeliest tokens) of every row, in any order; `on_row` gets the number of finished ones."""
        head = self._model.causal_lm.get_output_embeddings()
        layer = Head(head.weight, head.bias, HeadScaling.of_config(self._model.causal_lm.config))
        for indices in token_batches([row.num_tokens for row in rows], self._budget):
            batch = collate([rows[index] for index in indices]).to(self._device)
            with torch.no_grad():
                hidden_RD = self._model.hidden(batch)
                top_k = min(self._top_k, head.weight.shape[0])
                found = top_logps(hidden_RD, layer, batch.targets_R, top_k)
            start = 0
            ids_RK = found.ids_RK.cpu().numpy()
            logps_RK, labels_R = found.logps_RK.float().cpu().numpy(), found.labels_R.float().cpu().numpy()
            for index in indices:
                part = slice(start, start + rows[index].num_loss_tokens)
                yield index, Top(ids_RK[part], logps_RK[part], labels_R[part])
                start = part.stop
            on_row(len(indices))

    def close(self) -> None:
        """Free the model's memory."""
        del self._model
