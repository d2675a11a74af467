"""Time and stored bytes of stages that fuse distributions, merge models or decode jointly, before they run. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from wrpo_engine.config import StageParams
from wrpo_engine.contract.fusing import AlignParams, RepresentParams
from wrpo_engine.contract.merging import JointParams, MergeParams, MergeSearch
from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_operator.sizing.estimate import PROMPT_TOKENS, RESPONSE_TOKENS, Speed, forward_seconds, step_seconds

_ALIGNED_PER_SECOND = {"Spans": 150_000, "DTW": 20_000}
"""Tokens of a source that one core aligns, reads and writes in a second, measured with responses of 500 tokens."""
_MERGED_PER_SECOND = {"TIES": 60e6, "DARE-TIES": 60e6, "SCE": 90e6}
_USUALLY_MERGED_PER_SECOND = 100e6
"""Bytes of all parents that one core reads, merges and writes in a second, by method and for the others: measured by
`make bench-merging` on two cores in use. What was not measured counts as slower than the mean of the models."""
_SHARES_TRIED = 21
"""PackOpt: mixtures of two models that are compared for each member beyond the first and each token."""
_COMPARED_PER_SECOND = 1e8
"""PackOpt: logits of a mixture whose cross-entropy one core computes in a second, measured."""
_ENTRY_BYTES = 6
"""A kept token: its id in 4 bytes, its log probability or share in 2."""
_LABEL_BYTES = 8
"""What else is stored for a token of a response: id, mask and place in the text, before compression."""
_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


def align_seconds(params: AlignParams, *, tokens: int) -> float:
    """Return the seconds of one core for so many tokens of all models; MinCE aligns one source of each row at most."""
    sources = len(params.source_inputs)
    aligned = sources if params.strategy == "AvgCE" or params.vocabulary == "MS" else 1
    return tokens / (1 + sources) * aligned / _ALIGNED_PER_SECOND[params.alignment]


def merge_seconds(params: MergeParams, parent: ModelFacts) -> float:
    """Return the seconds of merging models of the size of `parent` once."""
    return len(params.parents) * parent.weight_bytes / _MERGED_PER_SECOND.get(params.method, _USUALLY_MERGED_PER_SECOND)


def search_seconds(search: MergeSearch, *, merging: float, answering: float, scoring: float) -> float:
    """Return the seconds of a whole search by those of one candidate, with the merge that follows."""
    return search.candidates * (merging + answering + scoring) + merging


def joint_tokens(params: JointParams, *, answers: int) -> int:
    """Return the tokens of prompts and responses that go through all members together."""
    return answers * len(params.members) * (PROMPT_TOKENS + _answer_length(params))


def joint_seconds(params: JointParams, members: Sequence[ModelFacts], speed: Speed, *, answers: int) -> float:
    """Return the seconds of one accelerator that holds all members and gives one response after the other.

    Every member reads the prompt and each token of the response; of PackTop1, one member of mean size reads the tokens.
    """
    steps = sum(step_seconds(member, speed) for member in members)
    if params.method == "PackTop1":
        steps /= len(members)
    if params.method == "PackOpt":
        positions = PROMPT_TOKENS + _answer_length(params) / 2
        compared = (len(members) - 1) * _SHARES_TRIED * positions * members[0].vocabulary
        steps += compared / _COMPARED_PER_SECOND
    reading = sum(forward_seconds(member, speed, tokens=PROMPT_TOKENS) for member in members)
    return answers * (reading + _answer_length(params) * steps)


def _answer_length(params: JointParams) -> int:
    return min(params.max_tokens, RESPONSE_TOKENS)


def stored_bytes(params: StageParams, *, rows: int | None, top_k: int | None, parent: ModelFacts | None) -> int | None:
    """Return the bytes that a stage leaves in the storage; None if they are unknown, or for another kind of stage.

    `rows` are those of SFT, `top_k` the tokens kept for each position, `parent` one of the models that are merged.
    """
    match params:
        case RepresentParams() | AlignParams():
            if rows is None or top_k is None:
                return None
            return rows * RESPONSE_TOKENS * (top_k * _ENTRY_BYTES + _LABEL_BYTES)
        case MergeParams():
            if parent is None:
                return None
            return parent.parameters * _WIDTHS[params.dtype] if params.dtype in _WIDTHS else parent.weight_bytes
        case _:
            return None
