"""Scores belong to their rows whatever the batches, and a reward that is no number is an error that names its row."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from engine_support import save_tiny_reward

from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import ConfigError, DataError, Interrupted
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.process.progress import ProgressState
from wrpo_engine.scoring import stage
from wrpo_engine.scoring.reward_model import RewardScorer
from wrpo_engine.stage import StopRequest

ANSWERS = [("p1", "short"), ("p1", "a much longer answer than the other one"), ("p2", "yes"), ("p2", ""), ("p3", "no")]


def scorer(path: Path, **changes: Any) -> RewardScorer:
    options: dict[str, Any] = {"max_length": 512, "batch_tokens": 4096}
    return RewardScorer(ResolvedModel(path, "tiny", None), **options | changes)


def test_padding_changes_no_score(tiny_reward_dir: Path) -> None:
    pairs = [("hi", "yo"), ("hi", "a rather longer answer"), ("a longer question, too?", "x"), ("hi", "")]
    together = scorer(tiny_reward_dir).score(pairs)
    alone = [scorer(tiny_reward_dir, batch_tokens=1).score([pair])[0] for pair in pairs]
    assert together == pytest.approx(alone, abs=1e-6)
    assert len(set(together)) == 4


def test_scores_equal_the_plain_model(tiny_reward_dir: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_reward_dir)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}], tokenize=False
    )
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reward_dir).eval()
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.inference_mode():
        expected = float(model(input_ids=ids).logits)
    assert scorer(tiny_reward_dir).score([("hi", "yo"), ("hello", "a longer one")])[0] == pytest.approx(
        expected, abs=1e-6
    )


def changed_tokenizer(path: Path, to: Path, **changes: Any) -> Path:
    """A copy of the reward model whose tokenizer has other attributes."""
    from transformers import AutoTokenizer

    shutil.copytree(path, to)
    tokenizer = AutoTokenizer.from_pretrained(to)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    (to / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(to)
    return to


def test_a_tokenizer_without_padding_and_end_tokens_scores_the_same(tiny_reward_dir: Path, tmp_path: Path) -> None:
    plain = changed_tokenizer(tiny_reward_dir, tmp_path / "plain", pad_token=None, eos_token=None)
    pairs = [("hi", "yo"), ("hi", "a rather longer answer")]
    assert scorer(plain).score(pairs) == pytest.approx(scorer(tiny_reward_dir).score(pairs), abs=1e-6)


def test_models_without_a_chat_template_read_prompt_and_response_as_a_pair(
    tiny_reward_dir: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = changed_tokenizer(tiny_reward_dir, tmp_path / "pairs", chat_template=None)
    short, long = scorer(path, max_length=12).rewards([("hi", "yo"), ("hello there", "a longer answer")])
    ids = AutoTokenizer.from_pretrained(path)("hi", "yo")["input_ids"]
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    with torch.inference_mode():
        expected = float(model(input_ids=torch.tensor([ids])).logits)
    assert short.score == pytest.approx(expected, abs=1e-6)
    assert (short.truncated, long.truncated) == (False, True)


def test_cut_pairs_are_marked(tiny_reward_dir: Path) -> None:
    rewards = scorer(tiny_reward_dir, max_length=60).rewards([("hi", "yo"), ("hi", "z" * 100)])
    assert [reward.truncated for reward in rewards] == [False, True]


def test_a_classifier_with_more_labels_is_refused(tmp_path: Path) -> None:
    path = save_tiny_reward(tmp_path / "three", num_labels=3)
    with pytest.raises(ConfigError) as error:
        scorer(path)
    assert error.value.message == "reward.model is 'tiny': it has 3 labels, but a reward model must have exactly one"
    assert error.value.hint == "Use a classifier trained with num_labels=1."


def test_a_model_without_a_trained_head_is_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigError) as error:
        scorer(tiny_model_dir)
    assert error.value.code == "RewardModelInvalid"
    assert error.value.hint is not None


@pytest.fixture
def inputs(commit_artifact: Any) -> dict[str, ArtifactRef]:
    prompts = pl.DataFrame({"prompt_id": ["p1", "p2", "p3", "p4"], "prompt": ["one?", "two?", "three?", "four" * 200]})
    samples = pl.DataFrame(
        {
            "prompt_id": [prompt for prompt, _ in ANSWERS] + ["p4"],
            "source": ["tiny"] * 6,
            "sample_index": [0, 1, 0, 1, 0, 0],
            "text": [text for _, text in ANSWERS] + [""],
            "num_tokens": [1] * 6,
            "finish_reason": ["stop"] * 5 + ["prompt_too_long"],
            "seed": [0] * 6,
        }
    )
    return {
        "prompts": commit_artifact("prepare", {"sft.parquet": prompts}),
        "samples/tiny": commit_artifact("sample/tiny", {"parts/part-00000.parquet": samples}),
    }


def params(reward: Path, **changes: Any) -> dict[str, Any]:
    return {"stage": "score", "reward": {"name": str(reward)}, "rows_per_part": 2, **changes}


def rows_of(ctx: Any) -> list[dict[str, Any]]:
    artifact = ctx.output.committed()
    return pl.concat([pl.read_parquet(artifact.file(name)) for name in artifact.files()]).to_dicts()


def test_every_answer_gets_a_score_in_the_order_of_the_samples(
    make_ctx: Any, inputs: dict[str, ArtifactRef], tiny_reward_dir: Path
) -> None:
    ctx = make_ctx(params(tiny_reward_dir), inputs, stage="score/tiny")
    result = stage.run(ctx)
    rows = rows_of(ctx)
    assert [(row["prompt_id"], row["sample_index"]) for row in rows] == [
        ("p1", 0),
        ("p1", 1),
        ("p2", 0),
        ("p2", 1),
        ("p3", 0),
    ]
    texts = {"p1": "one?", "p2": "two?", "p3": "three?"}
    expected = scorer(tiny_reward_dir).score([(texts[prompt], answer) for prompt, answer in ANSWERS])
    assert [row["score"] for row in rows] == pytest.approx(expected, abs=1e-6)
    assert result.metrics["mean_score"] == pytest.approx(sum(expected) / 5, abs=1e-6)
    assert (result.metrics["responses"], result.metrics["truncated"]) == (5, 0)


def unknowing(directory: Path, to: Path, known: str) -> Path:
    """Copy a reward model with a tokenizer that knows a few characters only."""
    shutil.copytree(directory, to)
    file = to / "tokenizer.json"
    state = json.loads(file.read_text())
    keep = {entry["content"] for entry in state["added_tokens"]} | set(known)
    state["model"]["vocab"] = {text: token for text, token in state["model"]["vocab"].items() if text in keep}
    file.write_text(json.dumps(state))
    return to


def test_answers_with_characters_that_the_reward_model_does_not_know_are_counted_and_refused_if_many(
    make_ctx: Any, commit_artifact: Any, tiny_reward_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reward = unknowing(tiny_reward_dir, tmp_path / "unknowing", "usersistantopĊyz<|im_>")
    prompts = pl.DataFrame({"prompt_id": ["p1"], "prompt": ["yo"]})

    def score(texts: list[str], name: str) -> Any:
        samples = pl.DataFrame(
            {
                "prompt_id": ["p1"] * len(texts),
                "source": [name] * len(texts),
                "sample_index": range(len(texts)),
                "text": texts,
                "num_tokens": [1] * len(texts),
                "finish_reason": ["stop"] * len(texts),
                "seed": [0] * len(texts),
            }
        )
        ctx = make_ctx(
            params(reward),
            {
                "prompts": commit_artifact("prepare", {"sft.parquet": prompts}),
                f"samples/{name}": commit_artifact(f"sample/{name}", {"parts/part-00000.parquet": samples}),
            },
            stage=f"score/{name}",
        )
        return ctx, stage.run(ctx).metrics

    ctx, metrics = score(["yes", "yes yes".replace(" ", "z"), *["toy"] * 7, "QX"], "few")
    assert (metrics["responses"], metrics["changed_responses"], metrics["respelled_responses"]) == (10, 1, 0)
    assert [row["change"] for row in rows_of(ctx)].count("characters that the tokenizer does not know") == 1
    said = "1 of 10 responses (10.0%) have characters that the reward model's tokenizer does not know; the first is "
    assert f"{said}prompt_id p1, source few, sample_index 9" in caplog.messages
    with pytest.raises(DataError) as error:
        score(["yes", "QX", "XQ"], "many")
    assert (error.value.code, error.value.field) == ("ResponsesChanged", "reward.model")
    assert error.value.message.startswith("2 of 3 responses (66.7%) have characters that the reward ")
    assert "the first is prompt_id p1, source many, sample_index 1" in error.value.message


def test_shards_do_not_change_scores(make_ctx: Any, inputs: dict[str, ArtifactRef], tiny_reward_dir: Path) -> None:
    whole = make_ctx(params(tiny_reward_dir), inputs, stage="score/tiny", hash_="00000000000000aa")
    stage.run(whole)
    for shard in (1, 0):
        ctx = make_ctx(
            params(tiny_reward_dir),
            inputs,
            stage="score/tiny",
            hash_="00000000000000bb",
            shard=shard,
            runtime={"shards": 2},
        )
        stage.run(ctx)
    assert ctx.output.committed().manifest.files == whole.output.committed().manifest.files


def test_a_stop_request_ends_scoring_after_a_batch_and_finished_parts_stay(
    make_ctx: Any, inputs: dict[str, ArtifactRef], tiny_reward_dir: Path
) -> None:
    stop = StopRequest()
    ctx = make_ctx(params(tiny_reward_dir), inputs, stage="score/tiny", stop=stop, runtime={"batch_tokens": 1})
    seen: list[float] = []

    class StopAfterThePart:
        def show(self, state: ProgressState) -> None:
            seen.append(state.done)
            if state.done == 2:
                stop.request()

        def close(self) -> None:
            pass

    ctx.progress.sinks.append(StopAfterThePart())
    with pytest.raises(Interrupted):
        stage.run(ctx)
    assert seen == [0, 1, 2]
    assert [path.name for path in (ctx.output.directory / "parts").iterdir()] == ["part-00000.parquet"]
    again = make_ctx(params(tiny_reward_dir), inputs, stage="score/tiny")
    assert stage.run(again).rows == 3
    assert len(rows_of(again)) == 5


def test_a_reward_that_is_not_a_number_names_its_row(
    make_ctx: Any, inputs: dict[str, ArtifactRef], tmp_path: Path
) -> None:
    reward = save_tiny_reward(tmp_path / "nan", nan=True)
    ctx = make_ctx(params(reward), inputs, stage="score/tiny")
    with pytest.raises(DataError) as error:
        stage.run(ctx)
    assert error.value.code == "RewardNotFinite"
    assert error.value.message == (
        f"reward model {reward} gives nan for prompt_id p1, source tiny, sample_index 0 (30 tokens)"
    )
    assert ctx.output.committed() is None


def test_samples_of_other_prompts_are_refused(
    make_ctx: Any, inputs: dict[str, ArtifactRef], tiny_reward_dir: Path, commit_artifact: Any
) -> None:
    other = pl.DataFrame({"prompt_id": ["p9"], "prompt": ["nine?"]})
    inputs["prompts"] = commit_artifact("prepare", {"sft.parquet": other}, hash_="00000000000000ff")
    with pytest.raises(DataError) as error:
        stage.run(make_ctx(params(tiny_reward_dir), inputs, stage="score/tiny"))
    assert error.value.message == ("prompt_id p1, source tiny, sample_index 0: the prompts artifact has no such prompt")
