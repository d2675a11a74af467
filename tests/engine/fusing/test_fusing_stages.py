"""The represent and align stages: models of two tokenizers, one corpus, distributions that SFT can train on."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from engine_support import make_tokenizer, save_llama, save_small_model
from safetensors.torch import load_file
from tokenizer_kinds import KINDS

from wrpo_engine.artifacts import Artifact, records
from wrpo_engine.config import ArtifactRef
from wrpo_engine.contract.fusing import AlignParams
from wrpo_engine.errors import ConfigError, DataError, Interrupted
from wrpo_engine.fusing import align, represent
from wrpo_engine.fusing.files import read_map, read_vocabulary
from wrpo_engine.fusing.vllm_tops import top_of
from wrpo_engine.merging import stage as merging
from wrpo_engine.stage import StopRequest
from wrpo_engine.text.chat import response_token_ids
from wrpo_engine.training import session
from wrpo_engine.training.backends.single_process import SingleProcessBackend
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.models.policy import load_policy
from wrpo_engine.training.stage import run_sft

PIECES = [
    "the quick brown fox", "jumps over the lazy dog", "I think it is four.", "a turn ends, one by one",
    "Hm. What is two and two?", "0123456789", "on my fingers; I add them", "system of the user",
]  # fmt: skip
TEXTS = [f"{PIECES[index % 8]} {PIECES[(3 * index + 1) % 8]}"[: 20 + 3 * index] for index in range(10)]
CORPUS = pl.DataFrame(
    {
        "prompt_id": [f"row-{index}" for index in range(len(TEXTS))],
        "prompt": [f"why {piece}" for piece in TEXTS],
        "response": TEXTS[::-1],
    }
)
TOP_K = 4


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A target of single bytes, a twin with its tokenizer, and sources of other kinds."""
    root = tmp_path_factory.mktemp("models")
    return {
        "target": save_llama(root / "target", make_tokenizer(), seed=0),
        "twin": save_llama(root / "twin", make_tokenizer(), seed=1),
        "merged": save_llama(root / "merged", KINDS["byte-level"](), seed=2),
        "pieces": save_llama(root / "pieces", KINDS["SentencePiece, a blank in front of the text"](), seed=3),
        "short": save_llama(root / "short", make_tokenizer(), seed=4, max_position_embeddings=90),
    }


class Fusion:
    """Runs the stages on one storage."""

    def __init__(
        self, make_ctx: Callable[..., Any], commit: Callable[..., ArtifactRef], models: dict[str, Path]
    ) -> None:
        self.make_ctx, self.models = make_ctx, models
        self.corpus = {"sft-rows": commit("curate-sft", {"rows.parquet": CORPUS})}
        self.commit = commit

    def represent_ctx(self, name: str, *, hash_: str = "0123456789abcdef", shards: int = 1, **more: Any) -> Any:
        settings = more.pop("settings", {})
        params = {
            "stage": "represent",
            "model": {"name": str(self.models[name])},
            "source": name,
            "top_k": TOP_K,
            "precision": "float32",
            "rows_per_part": 4,
            **({"max_length": 512} if name == "target" else {}),
            **settings,
        }
        return self.make_ctx(
            params, self.corpus, stage=f"represent/{name}", hash_=hash_, runtime={"shards": shards}, **more
        )

    def represent(self, name: str, **more: Any) -> ArtifactRef:
        ctx = self.represent_ctx(name, **more)
        if ctx.output.committed() is None:
            represent.run(ctx)
        return ctx.output.ref

    def align_ctx(self, sources: Sequence[str], *, hash_: str = "0123456789abcdef", **more: Any) -> Any:
        roles = {f"represent/{name}": self.represent(name) for name in ("target", *sources)}
        params = {
            "stage": "align",
            "target_input": "represent/target",
            "source_inputs": tuple(f"represent/{name}" for name in sources),
            **more.pop("settings", {}),
        }
        return self.make_ctx(params, roles, stage="align/all", hash_=hash_, **more)

    def align(self, sources: Sequence[str], **settings: Any) -> Artifact:
        ctx = self.align_ctx(sources, settings=settings)
        align.run(ctx)
        return ctx.output.committed()


@pytest.fixture
def fusion(make_ctx: Any, commit_artifact: Any, models: dict[str, Path]) -> Fusion:
    return Fusion(make_ctx, commit_artifact, models)


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    return pl.concat([pl.read_parquet(artifact.file(name)) for name in artifact.files("parts/")]).to_dicts()


def plain_logps(directory: Path, row: dict[str, Any]) -> torch.Tensor:
    """All log-probabilities of a row's labels, by plain Transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory)
    first = row["label_mask"].index(True)
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([row["ids"]])).logits[0, first - 1 : -1], dim=-1)


@pytest.mark.parametrize("name", ["target", "pieces"])
def test_the_likeliest_tokens_are_those_of_plain_transformers(name: str, fusion: Fusion) -> None:
    ref = fusion.represent(name)
    ctx = fusion.represent_ctx(name)
    artifact = ctx.output.committed()
    assert artifact.ref == ref
    assert artifact.files() == [*(f"parts/part-0000{index}.parquet" for index in range(3)), "vocabulary.parquet"]
    rows = rows_of(artifact)
    assert [row["row_id"] for row in rows] == CORPUS["prompt_id"].to_list()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(fusion.models[name])
    for row, prompt, response in zip(rows[:3], CORPUS["prompt"], CORPUS["response"], strict=False):
        prompt_ids, response_ids = response_token_ids(tokenizer, prompt, response)
        assert row["ids"] == [*prompt_ids, *response_ids]
        assert row["label_mask"] == [False] * len(prompt_ids) + [True] * len(response_ids)
        assert (row["label_tokens"], row["bytes"]) == (len(response_ids), len(response.encode()))
        logps = plain_logps(fusion.models[name], row)
        values, ids = logps.topk(TOP_K)
        assert row["top_ids"] == ids.tolist()
        np.testing.assert_allclose(np.array(row["top_logp"], dtype=np.float64), values.numpy(), atol=4e-3)
        labels = logps.gather(-1, torch.tensor(response_ids)[:, None])
        assert row["ce_sum"] == pytest.approx(-labels.sum().item(), rel=1e-5)
    metrics = artifact.manifest.metrics
    tokens = sum(row["label_tokens"] for row in rows)
    assert metrics["label_tokens"] == tokens
    assert metrics["ce_per_token"] == pytest.approx(sum(row["ce_sum"] for row in rows) / tokens)
    assert (metrics["rows"], metrics["dropped"]) == (10, 0)


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.rglob("*.parquet"))}


def test_shards_and_interruptions_change_no_byte(fusion: Fusion, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fusion.represent_ctx("pieces")
    represent.run(whole)
    for shard in (1, 0):
        sharded = fusion.represent_ctx("pieces", hash_="1" * 16, shards=2, shard=shard)
        represent.run(sharded)
    stop = StopRequest()
    broken = fusion.represent_ctx("pieces", hash_="2" * 16, stop=stop)
    publish = type(broken.output).publish

    def stop_after_the_first(self: Any, name: str, *arguments: Any, **options: Any) -> Any:
        if name == "parts/part-00000.parquet":
            stop.request()
        return publish(self, name, *arguments, **options)

    monkeypatch.setattr(type(broken.output), "publish", stop_after_the_first)
    with pytest.raises(Interrupted):
        represent.run(broken)
    assert broken.output.published("parts/") == ["parts/part-00000.parquet"]
    stop._requested = False
    assert represent.run(broken).rows == 6
    contents = [bytes_of(ctx.output.directory) for ctx in (whole, sharded, broken)]
    assert contents[0] == contents[1] == contents[2]
    first, *others = (ctx.output.committed().manifest for ctx in (whole, sharded, broken))
    assert all((other.files, other.metrics) == (first.files, first.metrics) for other in others)


def test_rows_longer_than_a_sources_context_are_left_out_and_counted(fusion: Fusion) -> None:
    fusion.represent("short")
    artifact = fusion.represent_ctx("short").output.committed()
    rows = rows_of(artifact)
    dropped = [row for row in rows if row["dropped"] is not None]
    assert 0 < len(dropped) < len(rows)
    assert {row["dropped"] for row in dropped} == {"longer than the model's context"}
    assert all((row["ids"], row["top_ids"], row["label_tokens"]) == ([], [], 0) for row in dropped)
    assert artifact.manifest.metrics["dropped"] == len(dropped)
    aligned = rows_of(fusion.align(["short"]))
    by_id = {row["row_id"]: row["source"] for row in aligned}
    assert len(by_id) == 10
    assert all(by_id[row["row_id"]] == "target" for row in dropped)


def test_a_source_into_whose_context_no_row_fits_is_named(fusion: Fusion, tmp_path: Path) -> None:
    fusion.models = {
        **fusion.models,
        "tiny": save_llama(tmp_path / "tiny", make_tokenizer(), seed=5, max_position_embeddings=8),
    }
    with pytest.raises(DataError) as caught:
        fusion.represent("tiny")
    assert str(caught.value) == (
        f"none of the 10 rows of the corpus can be represented by {tmp_path / 'tiny'}: "
        "10 longer than the model's context"
    )
    assert caught.value.field == "sources[tiny].model"


def test_a_tokenizer_that_changes_texts_is_refused(fusion: Fusion, tmp_path: Path) -> None:
    tokenizer = KINDS["a normaliser before control tokens"]()
    fusion.models = {**fusion.models, "lower": save_llama(tmp_path / "lower", tokenizer, seed=5)}
    fusion.corpus = {"sft-rows": fusion.commit("curate-sft", {
        "rows.parquet": CORPUS.with_columns(pl.col("response").str.to_uppercase())}, hash_="3" * 16)}  # fmt: skip
    with pytest.raises(DataError) as caught:
        fusion.represent("lower")
    assert str(caught.value).startswith("the tokens of 10 of 10 responses do not give their text back with the token")
    assert "the first is row row-0. At most 10% may differ" in str(caught.value)
    assert (caught.value.code, caught.value.field) == ("ResponsesChanged", "sources[lower].model")


def test_a_corpus_without_rows_is_refused(fusion: Fusion) -> None:
    fusion.corpus = {"sft-rows": fusion.commit("curate-sft", {"rows.parquet": CORPUS[:0]}, hash_="4" * 16)}
    with pytest.raises(DataError, match=r"^stage represent/target has no rows: rows.parquet of its corpus is empty"):
        fusion.represent("target")


def test_log_probs_that_are_not_finite_name_the_row(fusion: Fusion, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = Path(shutil.copytree(fusion.models["twin"], tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    weights["lm_head.weight"][3] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    fusion.models = {**fusion.models, "broken": broken}
    with pytest.raises(DataError, match=r"row row-\d: the model's log-probabilities are not finite"):
        fusion.represent("broken")


def test_quantised_weights_need_vllm(fusion: Fusion, tmp_path: Path) -> None:
    quantised = Path(shutil.copytree(fusion.models["twin"], tmp_path / "quantised"))
    settings = json.loads((quantised / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (quantised / "config.json").write_text(json.dumps(settings))
    fusion.models = {**fusion.models, "quantised": quantised}
    with pytest.raises(ConfigError) as caught:
        fusion.represent("quantised")
    assert str(caught.value) == (
        f"sft.fusion.backend is 'Engine': the weights of {quantised} are quantised, which the engine's forward pass "
        "does not read"
    )


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(fusion: Fusion, tmp_path: Path) -> None:
    wrong = Path(shutil.copytree(fusion.models["twin"], tmp_path / "wrong"))
    KINDS["byte-level"]().save_pretrained(wrong)
    fusion.models = {**fusion.models, "wrong": wrong}
    with pytest.raises(ConfigError, match=r"its tokenizer has tokens that its embedding of \d+ rows does not: "):
        fusion.represent("wrong")


# Alignment


def softmax(values: Sequence[float]) -> np.ndarray[Any, Any]:
    exponents = np.exp(np.array(values, dtype=np.float64))
    return exponents / exponents.sum()


def test_identical_tokenizers_give_the_identity(fusion: Fusion) -> None:
    artifact = fusion.align(["twin"])
    found = read_map(artifact.file("vocabulary_map/twin.parquet"))
    assert found.target_ids.tolist() == list(range(len(found.target_ids)))
    twin = {row["row_id"]: row for row in rows_of(fusion.represent_ctx("twin").output.committed())}
    target = {row["row_id"]: row for row in rows_of(fusion.represent_ctx("target").output.committed())}
    rows = rows_of(artifact)
    for row in rows:
        both = {"target": target[row["row_id"]], "twin": twin[row["row_id"]]}
        lowest = min(both, key=lambda name: both[name]["ce_sum"])
        assert row["source"] == lowest
        assert row["one_hot_share"] == 0
        chosen = both[lowest]
        assert row["fused_ids"] == chosen["top_ids"]
        for shares, logps in zip(row["fused_p"], chosen["top_logp"], strict=True):
            assert shares == pytest.approx(softmax(logps), abs=1e-3)
        assert row["ce"] == pytest.approx(chosen["ce_sum"] / chosen["label_tokens"])
    assert {row["source"] for row in rows} == {"target", "twin"}
    metrics = artifact.manifest.metrics
    assert metrics["share_twin"] + metrics["share_target"] == 1
    assert metrics["one_hot_share"] == 0


CHOICES = list(itertools.product(["Spans", "DTW"], ["EM", "MinED", "MS"], ["MinCE", "AvgCE"]))


def test_sources_of_other_tokenizers_give_distributions_over_the_targets_tokens(fusion: Fusion) -> None:
    size = len(make_tokenizer())
    for number, (alignment, vocabulary, strategy) in enumerate(CHOICES):
        settings = {"alignment": alignment, "vocabulary": vocabulary, "strategy": strategy, "normalise": "PerByte"}
        ctx = fusion.align_ctx(["merged", "pieces"], settings=settings, hash_=f"{number:016d}")
        align.run(ctx)
        manifest = ctx.output.committed().manifest
        for row in rows_of(ctx.output.committed()):
            assert len(row["fused_ids"]) == len(row["target_ids"])
            for ids, shares in zip(row["fused_ids"], row["fused_p"], strict=True):
                assert 1 <= len(ids) <= TOP_K
                assert len(set(ids)) == len(ids)
                assert all(0 <= index < size for index in ids)
                assert sum(shares) == pytest.approx(1, abs=5e-3)
        assert manifest.details["top_k"] == TOP_K
        assert 0 < manifest.metrics["one_hot_share"] < 1


def test_positions_after_the_same_bytes_take_the_sources_distribution(fusion: Fusion) -> None:
    """Worked from the two represent artifacts alone, for the source whose tokens are merged bytes."""
    artifact = fusion.align(["merged"], vocabulary="EM", normalise="PerByte")
    target = {row["row_id"]: row for row in rows_of(fusion.represent_ctx("target").output.committed())}
    source = {row["row_id"]: row for row in rows_of(fusion.represent_ctx("merged").output.committed())}
    stores = [fusion.represent_ctx(name).output.committed() for name in ("target", "merged")]
    own, other = map(read_vocabulary, stores)
    ids_of = {text: index for index, text in enumerate(own.texts) if text is not None}
    checked = 0
    for row in rows_of(artifact):
        if row["source"] != "merged":
            continue
        starts = source[row["row_id"]]["starts"]
        for place, label in enumerate(row["target_ids"]):
            start = target[row["row_id"]]["starts"][place]
            expected = [label]
            if start in starts:
                top = source[row["row_id"]]["top_ids"][starts.index(start)]
                ends = {other.end_of_turn: own.end_of_turn}
                known = [ends.get(index, ids_of.get(other.texts[index] or "")) for index in top]
                expected = [index for index in known if index is not None] or [label]
            assert row["fused_ids"][place] == expected
            checked += expected != [label]
    assert checked > 20


def test_shards_and_a_second_run_of_align_change_no_byte(fusion: Fusion) -> None:
    settings = {"vocabulary": "MS"}
    whole = fusion.align_ctx(["merged", "pieces"], settings=settings)
    align.run(whole)
    for shard in (1, 0):
        sharded = fusion.align_ctx(
            ["merged", "pieces"], settings=settings, hash_="1" * 16, runtime={"shards": 2}, shard=shard
        )
        align.run(sharded)
    assert bytes_of(whole.output.directory) == bytes_of(sharded.output.directory)
    assert len(bytes_of(whole.output.directory)) == 5


def test_a_map_of_two_vocabularies_is_made_once(fusion: Fusion, monkeypatch: pytest.MonkeyPatch) -> None:
    fusion.align(["merged"])
    monkeypatch.setattr("wrpo_engine.fusing.files.edit_map", None)
    again = fusion.align_ctx(["merged"], settings={"strategy": "AvgCE"}, hash_="5" * 16)
    align.run(again)
    assert again.output.committed() is not None


def test_the_released_place_of_one_hot_distributions_is_used_under_compat_only(fusion: Fusion) -> None:
    settings = {"alignment": "DTW", "vocabulary": "EM", "normalise": "PerByte"}
    correct = rows_of(fusion.align(["pieces"], **settings))
    ctx = fusion.align_ctx(["pieces"], settings={**settings, "compat": True}, hash_="6" * 16)
    align.run(ctx)
    released = rows_of(ctx.output.committed())
    moved = 0
    for row, other in zip(correct, released, strict=True):
        if row["source"] != "pieces":
            continue
        before = [row["target_ids"][0], *row["target_ids"][:-1]]
        for label, token, ours, theirs in zip(
            row["target_ids"], before, row["fused_ids"], other["fused_ids"], strict=True
        ):
            if theirs == [token] and ours == [label] and token != label:
                moved += 1
    assert moved > 5


def test_compat_needs_the_alignment_that_it_is_compatible_with() -> None:
    with pytest.raises(ValueError, match=r"compat needs alignment DTW, because the released code aligns tokens"):
        AlignParams(target_input="represent/target", source_inputs=("represent/a",), compat=True)
    with pytest.raises(
        ValueError, match=r"target_input and source_inputs must be different roles; got represent/a, represent/a"
    ):
        AlignParams(target_input="represent/a", source_inputs=("represent/a",))


def test_a_tokenizer_without_offsets_is_refused_for_spans_and_warped_otherwise(fusion: Fusion, tmp_path: Path) -> None:
    tokenizer = KINDS["WordPiece"]()
    fusion.models = {**fusion.models, "words": save_llama(tmp_path / "words", tokenizer, seed=6)}
    with pytest.raises(ConfigError) as caught:
        fusion.align(["words"])
    assert str(caught.value) == (
        f"sft.fusion.alignment is 'Spans': the tokenizer of {tmp_path / 'words'} does not give the bytes of its tokens"
    )
    assert (caught.value.code, caught.value.hint) == (
        "TokenizerWithoutOffsets",
        "Set sft.fusion.alignment: DTW, or leave this source out.",
    )
    assert fusion.align(["words"], alignment="DTW").manifest.metrics["rows"] == 10


def foreign(fusion: Fusion, change: Callable[[pl.DataFrame], pl.DataFrame], *, vocabulary: Any = None) -> Any:
    """The context of align with a source's artifact that is changed."""
    given = fusion.represent_ctx("merged")
    represent.run(given)
    artifact = given.output.committed()
    files = {name: pl.read_parquet(artifact.file(name)) for name in artifact.files()}
    files["parts/part-00000.parquet"] = change(files["parts/part-00000.parquet"])
    if vocabulary is not None:
        files["vocabulary.parquet"] = vocabulary(files["vocabulary.parquet"])
    ref = fusion.commit("represent/merged", files, hash_="7" * 16, details=dict(artifact.manifest.details))
    roles = {"represent/target": fusion.represent("target"), "represent/merged": ref}
    params = {"stage": "align", "target_input": "represent/target", "source_inputs": ("represent/merged",)}
    return fusion.make_ctx(params, roles, stage="align/all", hash_="7" * 16)


def infinite(frame: pl.DataFrame) -> pl.DataFrame:
    values = frame["top_logp"].to_list()
    values[1][0][0] = float("nan")
    return frame.with_columns(pl.Series("top_logp", values, dtype=records.REPRESENTED["top_logp"]))


FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "other rows": (
        {"change": lambda frame: frame.reverse()},
        "InputsDisagree",
        (
            "represent/merged/7777777777777777 and represent/target/0123456789abcdef represent different corpora: "
            "other rows in parts/part-00000.parquet"
        ),
    ),
    "NaN": (
        {"change": infinite},
        "LogprobsInvalid",
        "has log-probabilities that are not finite",
    ),
    "no common token": (
        {
            "change": lambda frame: frame,
            "vocabulary": lambda frame: frame.with_columns(
                text=pl.when(pl.col("text").is_null())
                .then(None)
                .otherwise(pl.format("zz{}", pl.col("token_id")).cast(pl.Binary))
            ),
        },
        "VocabulariesDisjoint",
        "have no token in common",
    ),
}


@pytest.mark.parametrize(("changes", "code", "said"), FAULTS.values(), ids=FAULTS.keys())
def test_artifacts_that_do_not_fit_are_refused(changes: dict[str, Any], code: str, said: str, fusion: Fusion) -> None:
    ctx = foreign(fusion, **changes)
    with pytest.raises(DataError) as caught:
        align.run(ctx)
    assert said in str(caught.value)
    assert caught.value.code == code
    assert caught.value.field is not None
    assert caught.value.field.startswith("sft.fusion")


def test_other_parts_are_refused(fusion: Fusion) -> None:
    fusion.represent("merged", settings={"rows_per_part": 5})
    with pytest.raises(DataError, match=r"represent different corpora: 2 parts and 3$"):
        fusion.align(["merged"])


# vLLM's values


def logprob(value: float, rank: int) -> Any:
    return SimpleNamespace(logprob=value, rank=rank)


def test_vllms_values_are_ranked_and_the_label_itself_is_left_out_of_them() -> None:
    row = TokenRow("r", (1, 2), ((5, 6),))
    values = [
        None,
        {2: logprob(-9.0, 9)},
        {7: logprob(-1.0, 2), 5: logprob(-4.0, 30), 3: logprob(-0.5, 1)},
        {6: logprob(-0.1, 1), 8: logprob(-3.0, 2)},
    ]
    top = top_of(row, values, 2)
    assert top.ids_TK.tolist() == [[3, 7], [6, 8]]
    assert top.logps_TK.flatten().tolist() == pytest.approx([-0.5, -1.0, -0.1, -3.0])
    assert top.labels_T.tolist() == pytest.approx([-4.0, -0.1])


def test_missing_values_of_vllm_name_the_row() -> None:
    row = TokenRow("r", (1, 2), ((5, 6),))
    with pytest.raises(DataError, match=r"^row r: vLLM gave log-probabilities for 1 of 2 tokens of the response$"):
        top_of(row, [None, {}, {5: logprob(-1.0, 1)}, None], 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of what vLLM imports
def test_vllm_gives_what_the_engines_forward_pass_does(fusion: Fusion, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    fusion.models = {**fusion.models, "small": save_small_model(tmp_path / "small")}
    both = [
        fusion.represent_ctx("small", settings={"backend": backend}, hash_=digit * 16)
        for backend, digit in (("Engine", "8"), ("vLLM", "9"))
    ]
    for ctx in both:
        represent.run(ctx)
    ours, theirs = (rows_of(ctx.output.committed()) for ctx in both)
    for one, other in zip(ours, theirs, strict=True):
        assert (one["ids"], one["starts"]) == (other["ids"], other["starts"])
        assert other["ce_sum"] == pytest.approx(one["ce_sum"], rel=1e-3)
        for mine, its in zip(one["top_logp"], other["top_logp"], strict=True):
            assert its == pytest.approx(mine, abs=0.02)


# From the corpus to a trained target


def plain_backend(attempt: Any, base: Any, layout: Any, *, needs_frozen: bool) -> SingleProcessBackend:
    return SingleProcessBackend(load_policy(base, attempt.params, layout), attempt.params)


@pytest.mark.parametrize(
    "fusions", [[["merged", "pieces"]], [["merged"], ["pieces"]]], ids=["FuseLLM, all at once", "FuseChat, pairwise"]
)
def test_the_fusion_loss_falls_in_sft_on_sources_of_other_tokenizers(
    fusions: list[list[str]], fusion: Fusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "make_backend", plain_backend)
    trained: dict[str, Artifact] = {}
    for number, sources in enumerate(fusions):
        aligned = fusion.align_ctx(sources, settings={"normalise": "PerByte"}, hash_=f"{number:016d}")
        align.run(aligned)
        assert aligned.output.committed().manifest.metrics.get("share_target", 0) < 1
        params = {
            "stage": "sft",
            "model": {"name": str(fusion.models["target"])},
            "fusion": {"targets": "align/all", "weight": 0.5},
            "learning_rate": 3e-3,
            "global_batch_size": 4,
            "epochs": 3,
            "max_length": 512,
            "max_prompt_length": 512,
            "precision": "float32",
        }
        ctx = fusion.make_ctx(params, {**fusion.corpus, "align/all": aligned.output.ref}, hash_=f"{number:016d}")
        run_sft(ctx)
        artifact = ctx.output.committed()
        rows = [json.loads(line) for line in artifact.file("metrics.jsonl").read_text().splitlines()]
        assert len(rows) == 9
        for name in ("fusion", "loss"):
            assert rows[-1][name] < rows[0][name] - 0.1
        trained[f"fused/f--{'-'.join(sources)}"] = artifact
    if len(trained) > 1:
        require_merged(fusion, trained)


def require_merged(fusion: Fusion, trained: dict[str, Artifact]) -> None:
    """Merge the fused models as FuseChat does; each weight moves from the target no further than one of them."""
    params = {
        "stage": "merge",
        "method": "SCE",
        "select_top_k": 0.1,
        "base": {"name": str(fusion.models["target"])},
        "models": [{"input": role} for role in trained],
    }
    ctx = fusion.make_ctx(params, {role: artifact.ref for role, artifact in trained.items()}, stage="merge/f")
    merging.run(ctx)
    start = load_file(fusion.models["target"] / "model.safetensors")
    models = [load_file(artifact.directory / "model" / "model.safetensors") for artifact in trained.values()]
    merged = load_file(ctx.output.committed().directory / "model" / "model.safetensors")
    assert merged.keys() == start.keys()
    for name, tensor in merged.items():
        deltas = torch.stack([torch.zeros_like(tensor), *(model[name] - start[name] for model in models)])
        delta = tensor - start[name]
        assert bool(((delta >= deltas.amin(0) - 1e-6) & (delta <= deltas.amax(0) + 1e-6)).all())
        assert not torch.equal(tensor, start[name])
