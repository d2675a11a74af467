"""Models that choose each token together: with a cache as without one, and alone if they are equal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cells import items_frame, rows_of
from engine_support import make_tokenizer, save_llama, save_tiny_model
from tokenizer_kinds import KINDS

from wrpo_engine.contract.merging import JointFields, JointParams
from wrpo_engine.errors import DataError, Interrupted
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.joint import members as members_module
from wrpo_engine.joint import stage
from wrpo_engine.joint.decoding import Answer, BridgedDecoder, PackedDecoder, answer, decoder_of, prompts_of
from wrpo_engine.joint.members import CachedReader, FreshReader, Member, load_member, load_members
from wrpo_engine.stage import StopRequest

CPU = torch.device("cpu")
METHODS = ["EVA", "PackSim", "PackOpt", "PackTop1", "Ensemble"]
QUESTION = [{"role": "user", "content": "the quick brown fox"}]
BYTES, PIECES, UNIGRAM = "byte-level", "SentencePiece, a blank in front of the text", "Unigram"


def save_model(directory: Path, tokenizer: Any, *, seed: int, hidden: int = 16) -> Path:
    sizes = {"hidden_size": hidden, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    return save_llama(directory, tokenizer, seed=seed, scale=12, **sizes)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("members")
    kinds = {"bytes": BYTES, "other bytes": BYTES, "pieces": PIECES, "unigram": UNIGRAM}
    return {
        name: save_model(root / name, KINDS[kind](), seed=seed, hidden=16 + 8 * (seed == 2))
        for seed, (name, kind) in enumerate(kinds.items())
    }


@pytest.fixture(scope="module")
def members(paths: dict[str, Path]) -> dict[str, Member]:
    return {name: load_member(ResolvedModel(path, name, None), "float32", CPU) for name, path in paths.items()}


def fields(method: str, **more: Any) -> JointFields:
    return JointFields.model_validate({"method": method, **more})


def answered(decoder: Any, max_tokens: int = 12) -> Answer:
    return answer(decoder, prompts_of(decoder.members, QUESTION, None), max_tokens, lambda: None)


def alone(member: Member, max_tokens: int = 12) -> list[int]:
    """What the model generates greedily by itself, by Transformers' own loop."""
    ids = prompts_of([member], QUESTION, None)[0]
    found: list[int] = []
    while len(found) < max_tokens:
        with torch.inference_mode():
            logits = member.model(input_ids=torch.tensor([[*ids, *found]])).logits[0, -1, : member.size]
        token = int(logits.argmax())
        if token in member.stops:
            break
        found.append(token)
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("names", [("bytes", "pieces", "unigram"), ("pieces", "bytes"), ("bytes", "other bytes")])
def test_a_cache_changes_no_token(members: dict[str, Member], names: Sequence[str], method: str) -> None:
    chosen = [members[name] for name in names]
    cached, fresh = (decoder_of(chosen, fields(method), reader) for reader in (CachedReader, FreshReader))
    found = answered(cached)
    assert found == answered(fresh)
    assert found.ids


@pytest.mark.parametrize("method", METHODS)
def test_models_that_are_equal_generate_what_one_generates(members: dict[str, Member], method: str) -> None:
    for name in ("bytes", "pieces"):
        found = answered(decoder_of([members[name]] * 2, fields(method)))
        assert list(found.ids) == alone(members[name])


def test_identical_tokenizers_need_no_bridge(members: dict[str, Member]) -> None:
    decoder = decoder_of([members["bytes"], members["other bytes"], members["pieces"]], fields("EVA"))
    assert isinstance(decoder, BridgedDecoder)
    assert list(decoder.bridges) == [2]
    packed = decoder_of([members["bytes"], members["other bytes"]], fields("PackSim"))
    assert isinstance(packed, PackedDecoder)
    assert packed.map_of(0, 1).tolist() == list(range(members["bytes"].size))


def test_ends_of_turns_are_mapped_to_each_other(members: dict[str, Member]) -> None:
    one, other = members["bytes"], members["unigram"]
    ends = [member.tokenizer.convert_tokens_to_ids("<|im_end|>") for member in (one, other)]
    decoder = decoder_of([one, other], fields("EVA"))
    assert isinstance(decoder, BridgedDecoder)
    row = decoder.bridges[1].to_dense()[ends[1]]
    assert torch.equal(row.nonzero().flatten(), torch.tensor([ends[0]]))
    packed = decoder_of([one, other], fields("PackSim"))
    assert isinstance(packed, PackedDecoder)
    assert packed.map_of(0, 1)[ends[0]] == ends[1]


def test_the_best_member_answers_alone(members: dict[str, Member]) -> None:
    chosen = [members[name] for name in ("bytes", "pieces", "unigram")]
    found = answered(decoder_of(chosen, fields("PackTop1")))
    assert list(found.ids) == alone(chosen[found.member])


@pytest.mark.parametrize("method", ["EVA", "PackSim"])
def test_an_answer_ends_where_a_context_is_full(paths: dict[str, Path], tmp_path: Path, method: str) -> None:
    short = save_model(tmp_path / "short", KINDS[BYTES](), seed=7)
    member = load_member(ResolvedModel(short, "short", None), "float32", CPU)
    length = len(prompts_of([member], QUESTION, None)[0])
    tight = Member(member.resolved, member.tokenizer, member.model, frozenset(), length + 4)
    found = answered(decoder_of([tight, tight], fields(method)))
    assert (len(found.ids), found.has_ended) == (5, False)


def test_a_cache_is_shortened_to_what_texts_have_in_common(members: dict[str, Member]) -> None:
    reader = CachedReader(members["bytes"].model)
    first = reader.read([5, 6, 7, 8, 9])
    assert first.shape[0] == 5
    again = reader.read([5, 6, 7, 10])
    assert again.shape[0] == 1
    torch.testing.assert_close(again[-1], FreshReader(members["bytes"].model).read([5, 6, 7, 10])[-1])
    torch.testing.assert_close(reader.read([5, 6, 7, 10])[-1], again[-1])


def test_members_with_too_few_common_tokens_are_refused(members: dict[str, Member], tmp_path: Path) -> None:
    wide = save_model(tmp_path / "wide", make_tokenizer(), seed=3, hidden=512)
    member = load_member(ResolvedModel(wide, "wide", None), "float32", CPU)
    with pytest.raises(DataError, match=r"have \d+ tokens in common, but embeddings of 512 dimensions need at least"):
        decoder_of([member, members["pieces"]], fields("EVA"))


TURNS = {"q1": ["the quick fox"], "q2": ["a turn?", "and then?"], "q3": ["why " * 200], "q4": ["hm"]}


def params(paths: dict[str, Path], method: str, **more: Any) -> dict[str, Any]:
    return {
        "stage": "joint", "method": method, "members": [{"name": str(paths[name])} for name in ("bytes", "pieces")],
        "system": "together", "benchmark": "Custom", "max_tokens": 5, "prompts_per_part": 1, **more,
    }  # fmt: skip


@pytest.fixture
def inputs(commit_artifact: Any) -> Any:
    return {"bench/b": commit_artifact("bench/b", {"items.parquet": items_frame(TURNS)})}


class StopAfter(StopRequest):
    def __init__(self, looks: int) -> None:
        super().__init__()
        self._left = looks

    def raise_if_requested(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Interrupted


@pytest.mark.parametrize("method", ["EVA", "PackOpt"])
def test_the_stage_answers_every_turn_whatever_the_interruptions(
    make_ctx: Any, inputs: Any, paths: dict[str, Path], method: str, tmp_path: Path
) -> None:
    given = params(paths, method)
    whole = make_ctx(given, inputs, stage="joint/t--b")
    result = stage.run(whole)
    rows = rows_of(whole)
    assert rows.select("item_id", "turn").rows() == [("q1", 0), ("q2", 0), ("q2", 1), ("q3", 0), ("q4", 0)]
    assert rows["finish_reason"].to_list()[3] == "prompt_too_long"
    assert result.metrics["answers"] == 4
    assert result.metrics["skipped_prompt_too_long"] == 1
    assert all(rows["text"][place] for place in (0, 1, 2, 4))
    other = "fedcba9876543210"
    for shard in (0, 1):
        for attempt in range(20):
            runtime = {"shards": 2}
            ctx = make_ctx(
                given, inputs, stage="joint/t--b", hash_=other, runtime=runtime, shard=shard, stop=StopAfter(14)
            )
            try:
                stage.run(ctx)
                break
            except Interrupted:
                assert attempt < 19
    digests = [{entry.name: entry.sha256 for entry in one.output.committed().manifest.files} for one in (whole, ctx)]
    assert digests[0] == digests[1]


def test_a_prompt_that_is_too_long_can_fail_the_stage(make_ctx: Any, inputs: Any, paths: dict[str, Path]) -> None:
    ctx = make_ctx(
        params(paths, "PackSim", on_prompt_too_long="Fail", names=["one", "two"]), inputs, stage="joint/t--b"
    )
    with pytest.raises(DataError, match=r"item q3 has \d+ tokens with the chat template, but the context of") as caught:
        stage.run(ctx)
    assert caught.value.field in {f"evaluation.systems[together].joint.members[{name}]" for name in ("one", "two")}


def test_a_joint_system_has_two_members() -> None:
    with pytest.raises(ValueError, match="at least 2 items"):
        JointParams.model_validate({"method": "EVA", "members": [{"name": "/a"}], "system": "s", "benchmark": "Custom"})


def test_nan_of_a_member_is_refused(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "nan")
    member = load_member(ResolvedModel(path, "broken", None), "float32", CPU)
    with torch.no_grad():
        member.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(DataError, match="broken gave NaN where the next token's scores should be"):
        answered(decoder_of([member, member], fields("EVA")))


@pytest.mark.parametrize(
    ("number", "places"), [(0, ["cpu"] * 3), (1, ["cuda:0"] * 3), (2, ["cuda:1", "cuda:0", "cuda:1"])]
)
def test_models_are_spread_over_the_accelerators_as_the_plan_counted(
    paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch, number: int, places: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
    monkeypatch.setattr(members_module, "load_member", lambda model, _dtype, device: (model.identity, str(device)))
    names = ["bytes", "pieces", "unigram"]  # the second one is the widest
    loaded: list[Any] = load_members([ResolvedModel(paths[name], name, None) for name in names], "float32")
    assert loaded == list(zip(names, places, strict=True))
