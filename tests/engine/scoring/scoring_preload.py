"""Imports what a scoring process imports: one forked from a process that has imported this starts at once."""

from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForSequenceClassification
from transformers.modeling_layers import GenericForSequenceClassification

import wrpo_engine.__main__
import wrpo_engine.scoring.reward_model
import wrpo_engine.scoring.stage
from wrpo_engine.training.models.attention import register

register()

__all__ = [
    "AutoModelForSequenceClassification",
    "AutoTokenizer",
    "GenericForSequenceClassification",
    "LlamaForSequenceClassification",
    "wrpo_engine",
]
