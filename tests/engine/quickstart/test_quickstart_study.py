"""The study's reward, prompts and models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from wrpo_engine.quickstart import assets, corpus, study
from wrpo_engine.quickstart.corpus import Exchange
from wrpo_engine.quickstart.known_reward import OPTIMUM, plain_sentence

EXAMPLE = Path(__file__).parents[3] / "examples" / "study.yaml"


def score(prompt: str, response: str) -> float:
    return plain_sentence([prompt], [response])[0]


def test_a_plain_sentence_on_the_topic_reaches_the_highest_score() -> None:
    assert score("What is gravity?", "The gravity of a planet pulls everything down.") == OPTIMUM


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("", 0.0),
        ("... !!", 0.0),
        ("Gravity pulls every thing downwards", 0.75),
        ("It always pulls every thing downwards.", 0.75),
        ("Gravity gravity gravity gravity gravity.", 0.8),
        ("Gravity.", 0.8),
        ("Gravity is " + " ".join(chr(97 + n // 26) + chr(97 + n % 26) for n in range(19)) + ".", 0.875),
        ("Gravity " + " ".join(chr(97 + n // 26) + chr(97 + n % 26) for n in range(60)) + ".", 0.75),
    ],
)
def test_each_fault_of_a_response_costs_its_part_of_the_score(response: str, expected: float) -> None:
    assert score("What is gravity?", response) == pytest.approx(expected)


def test_a_prompt_without_a_topic_word_is_never_missed() -> None:
    assert score("Why?", "Nobody can say this for sure.") == OPTIMUM


@given(st.lists(st.tuples(st.text(), st.text())))
def test_every_score_is_between_zero_and_the_optimum(pairs: list[tuple[str, str]]) -> None:
    scores = plain_sentence([prompt for prompt, _ in pairs], [response for _, response in pairs])
    assert len(scores) == len(pairs)
    assert all(0 <= each <= OPTIMUM for each in scores)


def test_prompts_about_topics_are_not_in_the_part_for_making_models() -> None:
    questions = [
        {"prompt": f"Describe the {chr(97 + n % 26) * 3}{chr(97 + n // 26) * 4}ing thing", "category": "x"}
        for n in range(400)
    ]
    rows = study.study_prompts([{"prompt": "own", "category": "talk"}], questions)
    assert rows[0] == {"prompt": "own", "category": "talk"}
    asked = [row["prompt"] for row in rows[1:]]
    assert 100 < len(asked) <= study.TOPIC_PROMPTS
    assert len(set(asked)) == len(asked)
    assert not any(corpus.is_training(prompt) for prompt in asked)


def test_two_sources_are_made_from_different_exchanges() -> None:
    exchanges = [
        Exchange(prompt=str(n), response="r", category=c) for n, c in enumerate(("trivia", "humor", "science"))
    ]
    facts = study.about_facts(exchanges, facts=True)
    assert [each.category for each in facts] == ["trivia", "science"]
    assert study.about_facts(exchanges, facts=False) == [exchanges[1]]


def test_a_merged_model_has_the_mean_of_its_parents_weights(tiny_model_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    first = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    expected = {name: value * 1.5 for name, value in first.state_dict().items()}
    other = tmp_path / "other"
    for parameter in first.parameters():
        parameter.data.mul_(2)
    first.save_pretrained(other)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (tiny_model_dir / name).exists():
            (other / name).write_bytes((tiny_model_dir / name).read_bytes())
    out = tmp_path / "merged"
    out.mkdir()
    study.make_merged(tiny_model_dir, other, out)
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).state_dict()
    assert all(torch.allclose(merged[name], value) for name, value in expected.items())
    assert "The weights are the mean" in (out / "README.md").read_text().replace("the weights", "The weights")


def test_the_sweep_names_only_models_and_prompts_that_are_built() -> None:
    experiment = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))["spec"]["experiment"]
    built = {asset.name for asset in (*assets.plan_assets(Path()), *assets.plan_study(Path()))}
    judges = [judge["reward"] for judge in experiment["evaluation"]["judges"]]
    named = [experiment["target"], *experiment["sources"], *judges]
    assert {entry["model"].removeprefix("storage://") for entry in named} <= built
    assert experiment["prompts"]["dataset"] == f"storage://{study.PROMPTS}"
    assert experiment["reward"]["function"] == f"{plain_sentence.__module__}:{plain_sentence.__name__}"


def test_every_parent_is_built_before_its_children() -> None:
    made = set[str]()
    for asset in (*assets.plan_assets(Path()), *assets.plan_study(Path())):
        assert set(asset.made_from) <= made, asset.name
        made.add(asset.name)
