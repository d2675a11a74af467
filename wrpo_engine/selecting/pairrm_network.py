"""PairRM's network: a DeBERTa encoder and a head that reads it at the prefixes of prompt and candidates.

With h_s, h_1, h_2 the last hidden states at the three prefix tokens and f = Linear(2H, H), tanh, Linear(H, T):

    logit = mean over the T tasks of f([h_s; h_1]) - f([h_s; h_2])

The published weights have one task. They are `pretrained_model.*` (DeBERTa-v2), `head_layer.1.*` and `head_layer.4.*`;
0 and 3 are dropout, 2 is tanh. The head computes in float32 regardless of the encoder's format.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2Model
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2PreTrainedModel


class PairRm(DebertaV2PreTrainedModel):  # type: ignore[misc]
    """The network; names of modules are those of the published weights."""

    config_class = DebertaV2Config
    base_model_prefix = "pretrained_model"
    _keep_in_fp32_modules_strict = ("head_layer",)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        hidden, tasks = int(config.hidden_size), int(getattr(config, "n_tasks", 1))
        self.pretrained_model = DebertaV2Model(config)
        self.head_layer = nn.Sequential(
            nn.Identity(), nn.Linear(2 * hidden, hidden), nn.Tanh(), nn.Identity(), nn.Linear(hidden, tasks)
        )
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, places_B3: Tensor) -> Tensor:  # noqa: N803
        """Return the logits [B] in float32. input_ids, attention_mask: [B, L]; places_B3: positions of the prefixes."""
        hidden_BLH = self.pretrained_model(  # noqa: N806 (shape suffixes)
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        rows = torch.arange(len(input_ids), device=input_ids.device)[:, None]
        source, left, right = hidden_BLH[rows, places_B3].float().unbind(dim=1)
        score_left = self.head_layer(torch.cat((source, left), dim=-1))
        score_right = self.head_layer(torch.cat((source, right), dim=-1))
        logits: Tensor = (score_left - score_right).mean(dim=-1)
        return logits
