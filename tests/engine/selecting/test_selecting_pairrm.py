"""PairRM's logits are those of an independent computation, and checkpoints that are not PairRM are refused by name."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_support import save_tiny_reward
from pairrm_models import PREFIXES, make_config, make_oracle, make_tokenizer, oracle_ids, oracle_logit, save_pairrm

from wrpo_engine.errors import ConfigError
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.selecting.pairrm import PairRanker
from wrpo_engine.selecting.pairrm_encoding import Budget, PairRmEncoder

ITEMS: list[tuple[str, list[str]]] = [
    ("hi", ["a", "bb is long " * 5, "c"]),
    ("what is it? " * 9, ["x y z", "", "more and more", "x y z"]),
    ("", ["", "é ü 漢"]),
]


def ranker(path: Path, budget: Budget | None = None, **changes: Any) -> PairRanker:
    model = ResolvedModel(path, "tiny", None, field="select.ranker")
    return PairRanker(model, budget or Budget(1224, 2048), **{"batch_tokens": 4096, **changes})


def logits(ranker: PairRanker, items: list[tuple[str, list[str]]]) -> dict[tuple[int, int, int], float]:
    return {
        (item, pair.left, pair.right): pair.logit
        for item, compared in enumerate(ranker.compare(items))
        for pair in compared.comparisons
    }


@pytest.mark.parametrize("layout", ["conversion", "original"])
@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_logits_are_those_of_each_pair_alone(layout: str, batch_tokens: int, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(has_prefixes=layout == "conversion")
    oracle = save_pairrm(tmp_path, layout=layout, tokenizer=tokenizer)
    found = logits(ranker(tmp_path, batch_tokens=batch_tokens), ITEMS)
    whole = make_tokenizer()
    expected = {
        (item, left, right): oracle_logit(oracle, oracle_ids(whole, prompt, candidates[left], candidates[right]))
        for item, (prompt, candidates) in enumerate(ITEMS)
        for left in range(len(candidates))
        for right in range(len(candidates))
        if left != right
    }
    assert found == pytest.approx(expected, abs=2e-6)
    assert len({round(value, 5) for value in found.values()}) > len(found) // 2


def test_an_encoder_with_convolution_types_positions_and_own_position_keys_is_read_from_the_original_layout(
    tmp_path: Path,
) -> None:
    changes: dict[str, Any] = {
        "conv_kernel_size": 3,
        "conv_act": "gelu",
        "type_vocab_size": 2,
        "position_biased_input": True,
        "max_position_embeddings": 128,
        "share_att_key": False,
        "hidden": 128,
        "heads": 2,
    }
    oracle = save_pairrm(tmp_path, layout="original", **changes)
    ids = oracle_ids(make_tokenizer(), "hi", "a longer one", "b")
    assert logits(ranker(tmp_path), [("hi", ["a longer one", "b"])])[0, 0, 1] == pytest.approx(
        oracle_logit(oracle, ids), abs=2e-6
    )


def test_the_original_layout_may_state_settings_that_its_weights_do_not_show(tmp_path: Path) -> None:
    oracle = save_pairrm(tmp_path, layout="original", hidden=8, heads=2)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "num_attention_heads": 2}))
    ids = oracle_ids(make_tokenizer(), "hi", "yes", "no")
    assert logits(ranker(tmp_path), [("hi", ["yes", "no"])])[0, 0, 1] == pytest.approx(
        oracle_logit(oracle, ids), abs=2e-6
    )


def test_the_mean_over_tasks_is_the_logit(tmp_path: Path) -> None:
    import torch

    config = make_config()
    encoder, first, last = make_oracle(config)
    both = torch.nn.Linear(config.hidden_size, 2)
    with torch.no_grad():
        both.weight.copy_(torch.cat([last.weight, 3 * last.weight]))
    save_pairrm(tmp_path, oracle=(encoder, first, both), tasks=2)
    ids = oracle_ids(make_tokenizer(), "hi", "yes", "no")
    assert logits(ranker(tmp_path), [("hi", ["yes", "no"])])[0, 0, 1] == pytest.approx(
        2 * oracle_logit((encoder, first, last), ids), abs=2e-6
    )


def text(draw: random.Random, most: int) -> str:
    return "".join(draw.choices("abcdefg hij é", k=draw.randint(0, most)))


@pytest.mark.parametrize(
    ("budget", "options"),
    [
        (Budget(40, 100), {"source": 40, "total": 100}),
        (Budget(61, 83), {"source": 61, "total": 83}),
        (Budget(40, 100, 17), {"source": 40, "fixed": 17}),
    ],
)
def test_texts_are_truncated_as_the_tokenizer_itself_does_and_counted(budget: Budget, options: dict[str, int]) -> None:
    tokenizer = make_tokenizer()
    encoder = PairRmEncoder(make_tokenizer(), budget, identity="tiny")
    draw = random.Random(4)
    seen = set()
    for _ in range(60):
        prompt, left, right = text(draw, 70), text(draw, 60), text(draw, 60)
        encoded = encoder.encode(prompt, [left, right])
        assert encoded.pair(0, 1) == oracle_ids(tokenizer, prompt, left, right, **options)
        assert encoded.length(0, 1) == len(encoded.pair(0, 1)) <= budget.total
        whole = encoder_of_everything(prompt, [left, right])
        assert encoded.source_cut == (len(encoded.source) < len(whole.source))
        assert encoded.cut == [len(cut) < len(full) for cut, full in zip(encoded.left, whole.left, strict=True)]
        seen.add((encoded.source_cut, *encoded.cut))
    assert len(seen) >= 4


def encoder_of_everything(prompt: str, candidates: list[str]) -> Any:
    return PairRmEncoder(make_tokenizer(), Budget(10_000, 100_000), identity="tiny").encode(prompt, candidates)


@pytest.mark.parametrize("spelled", ["[SEP]", "[CLS]", "[PAD]", *PREFIXES])
def test_a_text_that_spells_a_control_token_stays_text(spelled: str) -> None:
    encoder = PairRmEncoder(make_tokenizer(), Budget(1224, 2048), identity="tiny")
    ids = encoder.encode(f"a {spelled} b", [f"{spelled}c", f"d{spelled}"]).pair(0, 1)
    assert [ids.count(token) for token in encoder.prefix_ids] == [1, 1, 1]
    assert (ids.count(1), ids.count(2), ids.count(0), ids.count(263)) == (3, 3, 0, 0)
    assert [token for token in ids if token in {1, 2, *encoder.prefix_ids}] == [1, 260, 2, 1, 261, 2, 1, 262, 2]


def test_a_model_with_absolute_positions_reads_no_more_tokens_than_it_has_positions(tmp_path: Path) -> None:
    save_pairrm(tmp_path, position_biased_input=True, max_position_embeddings=32)
    (compared,) = ranker(tmp_path, Budget(1024, 2048)).compare([("p" * 50, ["a" * 90, "b"])])
    assert [pair.tokens for pair in compared.comparisons] == [16 + 8 + 4] * 2
    assert (compared.prompt_cut, compared.cut) == (True, [True, False])


def test_in_bfloat16_the_head_stays_in_float32(tmp_path: Path) -> None:
    oracle = save_pairrm(tmp_path)
    found = logits(ranker(tmp_path, dtype="bfloat16"), ITEMS[:1])[0, 0, 1]
    exact = oracle_logit(oracle, oracle_ids(make_tokenizer(), ITEMS[0][0], *ITEMS[0][1][:2]))
    assert found == pytest.approx(exact, abs=0.05)
    assert found != pytest.approx(exact, abs=1e-7)
    network = ranker(tmp_path, dtype="bfloat16")._network
    assert {str(weight.dtype) for weight in network.head_layer.parameters()} == {"torch.float32"}
    assert str(network.pretrained_model.dtype) == "torch.bfloat16"


def test_progress_counts_every_pair_and_its_error_ends_the_work(tmp_path: Path) -> None:
    save_pairrm(tmp_path)
    counts: list[int] = []
    ranker(tmp_path, batch_tokens=64).compare(ITEMS, counts.append)
    assert sum(counts) == 6 + 12 + 2
    assert len(counts) > 3

    def stop(_: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        ranker(tmp_path).compare(ITEMS, stop)


def edit_tensors(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.pop(name)


def shorten(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.update({name: tensors[name][:-1].clone()})


def add(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.update({name: next(iter(tensors.values())).clone()})


DAMAGE = {
    "no head": (drop("head_layer.4.weight"), "its files hold no weights for head_layer.4.weight, so its comparisons"),
    "a layer without a matrix": (
        drop("pretrained_model.encoder.layer.1.output.dense.weight"),
        "its files hold no weights for pretrained_model.encoder.layer.1.output.dense.weight, so its comparisons",
    ),
    "a head of another size": (
        shorten("head_layer.1.weight"),
        "head_layer.1.weight is [63, 128] in the files and [64, 128] by config.json",
    ),
    "a tensor without a place": (
        add("head_layer.5.weight"),
        "its files hold weights that the model of its config.json has no place for: head_layer.5.weight",
    ),
}


@pytest.mark.parametrize("layout", ["conversion", "original"])
@pytest.mark.parametrize("name", DAMAGE)
def test_weights_that_are_not_exactly_the_networks_are_refused(name: str, layout: str, tmp_path: Path) -> None:
    change, message = DAMAGE[name]
    save_pairrm(tmp_path, layout=layout)
    edit_tensors(tmp_path, change)
    with pytest.raises(ConfigError) as error:
        ranker(tmp_path)
    assert error.value.message.startswith("select.ranker is 'tiny': ")
    assert message in error.value.message
    assert error.value.code == "RankerInvalid"


def test_saved_position_numbers_and_heads_of_pretraining_are_ignored(tmp_path: Path) -> None:
    save_pairrm(tmp_path)
    before = logits(ranker(tmp_path), ITEMS)
    edit_tensors(tmp_path, add("pretrained_model.embeddings.position_ids"))
    edit_tensors(tmp_path, add("lm_predictions.lm_head.bias"))
    assert logits(ranker(tmp_path), ITEMS) == pytest.approx(before, abs=1e-6)


def config_of(path: Path, **changes: Any) -> None:
    content = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**content, **changes}))


CONFIGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "another ranker": ("original", {"ranker_type": "dual"}, "its config.json has ranker_type 'dual', not 'pairranker'"),
    "another reduction": ("original", {"reduce_type": "max"}, "its config.json has reduce_type 'max', not 'linear'"),
    "another architecture": ("conversion", {"model_type": "bert"}, "its config.json has the model_type 'bert'"),
    "other prefixes": (
        "conversion",
        {"cand1_prefix_id": 7},
        "its config.json has cand1_prefix_id 7, but its tokenizer has 261",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_of_another_model_is_refused(name: str, tmp_path: Path) -> None:
    layout, changes, message = CONFIGS[name]
    save_pairrm(tmp_path, layout=layout)
    config_of(tmp_path, **changes)
    with pytest.raises(ConfigError) as error:
        ranker(tmp_path)
    assert error.value.message == f"select.ranker is 'tiny': {message}"


def test_a_reward_model_is_not_a_ranker(tmp_path: Path) -> None:
    save_tiny_reward(tmp_path)
    with pytest.raises(ConfigError) as error:
        ranker(tmp_path)
    assert error.value.message == "select.ranker is 'tiny': its config.json has the model_type 'llama'"
    assert error.value.hint is not None
    assert "PairRM" in error.value.hint


def test_weights_of_no_encoder_in_the_original_layout_are_refused(tmp_path: Path) -> None:
    save_pairrm(tmp_path, layout="original")
    edit_tensors(tmp_path, drop("pretrained_model.embeddings.word_embeddings.weight"))
    with pytest.raises(ConfigError) as error:
        ranker(tmp_path)
    assert error.value.message == (
        "select.ranker is 'tiny': its weights are not those of DeBERTa: 'embeddings.word_embeddings.weight'"
    )


def test_a_tokenizer_whose_prefixes_have_no_embedding_is_refused(tmp_path: Path) -> None:
    save_pairrm(tmp_path, layout="original", vocab_size=261)
    with pytest.raises(ConfigError) as error:
        ranker(tmp_path)
    assert error.value.message == (
        "select.ranker is 'tiny': its tokenizer has cand1_prefix_id 261, but its embedding has 261 rows"
    )
    assert error.value.code == "TokenizerInvalid"


def test_a_tokenizer_without_a_separator_is_refused(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.sep_token = None
    save_pairrm(tmp_path, tokenizer=tokenizer)
    with pytest.raises(ConfigError) as error:
        ranker(tmp_path)
    assert error.value.message == (
        "select.ranker is 'tiny': its tokenizer has no SEP token, which separates the texts of a pair"
    )


@pytest.mark.parametrize(
    ("budget", "field", "room"),
    [
        (Budget(2, 2048), "maxSourceTokens is 2", 2),
        (Budget(1224, 1229), "maxLength is 1229", 2),
        (Budget(1224, 100), "maxLength is 100", 0),
        (Budget(1224, 2048, 1), "maxCandidateTokens is 1", 1),
    ],
)
def test_lengths_that_leave_a_text_no_room_are_refused(budget: Budget, field: str, room: int) -> None:
    with pytest.raises(ConfigError) as error:
        budget.check()
    assert error.value.message == (
        f"select.{field}: it leaves {room} tokens for a text, but [CLS], its prefix and [SEP] are 3"
    )
