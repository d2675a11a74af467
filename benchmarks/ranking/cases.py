"""Workload of ranking: the shape of the ranker, the members, and the lengths of prompts and answers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

_PREFIXES = ("<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>")
_SPECIALS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
_WORDS = 4088
PUBLISHED_LENGTH = 2048
"""Tokens to which the published script pads each pair: 1224 for the prompt and 412 for each candidate."""
Items = list[tuple[str, list[str]]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A ranker of random weights and texts of random words; lengths in tokens, each drawn evenly from its range."""

    name: str
    layers: int
    hidden: int
    items: int
    members: int
    prompt_tokens: tuple[int, int]
    answer_tokens: tuple[int, int]


CASES = (
    Case(name="offline", layers=2, hidden=64, items=8, members=5, prompt_tokens=(10, 40), answer_tokens=(4, 60)),
    Case(name="medium", layers=6, hidden=256, items=3, members=4, prompt_tokens=(20, 60), answer_tokens=(50, 200)),
    Case(name="long", layers=6, hidden=256, items=1, members=4, prompt_tokens=(100, 300), answer_tokens=(100, 400)),
)
"""offline: the size of rankers that a CPU trains. medium, long: DeBERTa-small's width, answers of chat models."""


def save_model(case: Case, directory: Path) -> None:
    """Save a PairRM of random weights, in the layout of Transformers' conversion, with a tokenizer of whole words."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import DebertaV2Config, DebertaV2Model, PreTrainedTokenizerFast

    names = [*_SPECIALS, *_PREFIXES, *(f"w{index}" for index in range(_WORDS))]
    padding, opening, closing, unknown = _SPECIALS
    backend = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=padding,
        cls_token=opening,
        sep_token=closing,
        unk_token=unknown,
    )
    tokenizer.add_tokens(list(_PREFIXES))
    tokenizer.save_pretrained(directory)
    config = DebertaV2Config(
        vocab_size=len(names),
        hidden_size=case.hidden,
        intermediate_size=4 * case.hidden,
        num_hidden_layers=case.layers,
        num_attention_heads=case.hidden // 64,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type="p2c|c2p",
        position_biased_input=False,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    encoder = DebertaV2Model(config)
    tensors = {f"pretrained_model.{name}": tensor.clone() for name, tensor in encoder.state_dict().items()}
    for place, size in ((1, (case.hidden, 2 * case.hidden)), (4, (1, case.hidden))):
        tensors[f"head_layer.{place}.weight"] = torch.randn(size) / size[1] ** 0.5
        tensors[f"head_layer.{place}.bias"] = torch.zeros(size[0])
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config.to_dict()))


def items_of(case: Case) -> Items:
    draw = random.Random(0)

    def words(bounds: tuple[int, int]) -> str:
        return "".join(f" w{draw.randrange(_WORDS)}" for _ in range(draw.randint(*bounds)))

    return [
        (words(case.prompt_tokens), [words(case.answer_tokens) for _ in range(case.members)]) for _ in range(case.items)
    ]


def one_at_a_time(
    directory: Path, items: Items, *, padded_to: int = 0, pairs: int | None = None
) -> Callable[[], list[float]]:
    """Return a function that compares the first pairs, or all: tokenizer, encoder and head for each pair.

    The script of LLM-Blender's README pads each pair to PUBLISHED_LENGTH tokens. `padded_to` 0: no padding.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, DebertaV2Config, DebertaV2Model

    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    tensors = load_file(directory / "model.safetensors")
    encoder = DebertaV2Model(DebertaV2Config.from_pretrained(directory)).eval()
    own = "pretrained_model."
    encoder.load_state_dict({name.removeprefix(own): value for name, value in tensors.items() if name.startswith(own)})
    prefixes = tokenizer.convert_tokens_to_ids(list(_PREFIXES[:3]))

    def head(states: Any) -> Any:
        inner = torch.nn.functional.linear(states, tensors["head_layer.1.weight"], tensors["head_layer.1.bias"])
        outer = tensors["head_layer.4.weight"], tensors["head_layer.4.bias"]
        return torch.nn.functional.linear(torch.tanh(inner), *outer)

    def compare(prompt: str, left: str, right: str) -> float:
        ids = tokenizer(_PREFIXES[0] + prompt, max_length=1224, truncation=True)["input_ids"]
        room = (PUBLISHED_LENGTH - len(ids)) // 2
        for prefix, text in zip(_PREFIXES[1:], (left, right), strict=False):
            ids = ids + tokenizer(prefix + text, max_length=room, truncation=True)["input_ids"]
        padding = [0] * (padded_to - len(ids))
        mask = torch.tensor([[1] * len(ids) + padding])
        with torch.inference_mode():
            states = encoder(input_ids=torch.tensor([ids + padding]), attention_mask=mask).last_hidden_state[0]
            source, one, two = (states[ids.index(prefix)] for prefix in prefixes)
            return float(head(torch.cat([source, one])) - head(torch.cat([source, two])))

    compared = [(prompt, *pair) for prompt, answers in items for pair in permutations(answers, 2)][:pairs]

    def run() -> list[float]:
        return [compare(*texts) for texts in compared]

    return run
