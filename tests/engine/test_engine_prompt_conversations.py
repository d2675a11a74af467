"""Conversations as training prompts: one form in every stage from prepare to training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from engine_support import EXPERIMENT_HASH, make_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from wrpo_engine.artifacts import records
from wrpo_engine.bundles.items import read_items
from wrpo_engine.config import ArtifactRef, OptimizerParams
from wrpo_engine.curation.stage import run_sft, run_triples
from wrpo_engine.errors import DataError
from wrpo_engine.prompts.split import clean
from wrpo_engine.prompts.stage import run as prepare
from wrpo_engine.sampling import stage as sampling
from wrpo_engine.sampling.sampler import FinishReason, Sample, Sampled, SampleRequest
from wrpo_engine.scoring import stage as scoring
from wrpo_engine.scoring.rewards import Pair, Reward
from wrpo_engine.text.chat import conversation_prompt_ids
from wrpo_engine.training.data.inputs import ChatEncoder, read_sft_rows, read_triples
from wrpo_engine.training.data.tokenize import tokenize_rows


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be <|im_end|> brief."}
CONVERSATION = [SYSTEM, user("What is 2 + 2?"), assistant("Four."), user("And 3 + 3?")]
PLAIN = "And 3 + 3?"


def write(path: Path, values: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps({"prompt": value}) + "\n" for value in values))
    return str(path)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda text: text.strip())
FORMS = {
    "a message": user,
    "a list": lambda text: [user(text)],
    "a list with an empty system turn": lambda text: [{**SYSTEM, "content": " "}, user(text)],
    "ShareGPT": lambda text: [{"from": "human", "value": text}],
    "parts": lambda text: [{"role": "user", "content": [{"type": "text", "text": text}]}],
}


@given(texts=st.lists(TEXT, max_size=5), form=st.sampled_from(sorted(FORMS)))
def test_a_conversation_of_one_user_turn_is_the_plain_prompt(texts: list[str], form: str) -> None:
    assert clean(map(FORMS[form], texts)) == clean(texts)


@pytest.mark.parametrize("form", FORMS)
def test_conversations_of_one_user_turn_give_the_same_bytes_as_plain_prompts(
    tmp_path: Path, make_ctx: Any, form: str
) -> None:
    texts = [f"question {number}?" for number in range(9)]
    written = []
    for name, values in (("plain", texts), ("form", list(map(FORMS[form], texts)))):
        dataset = write(tmp_path / f"{name}.jsonl", values)
        ctx = make_ctx({"stage": "prepare", "dataset": dataset, "evaluation_prompts": 2}, root=tmp_path / name)
        prepare(ctx)
        artifact = ctx.output.committed()
        assert pl.read_parquet_schema(artifact.file("sft.parquet")) == records.PROMPTS
        written.append({file: artifact.file(file).read_bytes() for file in artifact.files()})
    assert written[0] == written[1]


def test_prompts_are_equal_if_their_whole_conversations_are() -> None:
    values = [CONVERSATION, PLAIN, CONVERSATION[1:], [*CONVERSATION, assistant("Six.")], json.dumps(CONVERSATION)]
    cleaned = clean(values)
    assert [(prompt.prompt, len(prompt.history)) for prompt in cleaned.prompts] == [(PLAIN, 3), (PLAIN, 0), (PLAIN, 2)]
    assert dict(cleaned.dropped) == {"duplicate": 2}
    assert [prompt.prompt_id for prompt in cleaned.prompts] == [
        hashlib.sha256(text.encode()).hexdigest()
        for text in (json.dumps(CONVERSATION), PLAIN, json.dumps(CONVERSATION[1:]))
    ]


def test_texts_of_the_history_have_their_normal_form() -> None:
    (prompt,) = clean([[user(" Cafe\u0301? "), assistant("Yes.\n"), user("Why?")]]).prompts
    assert prompt.history == (("user", "Caf\u00e9?"), ("assistant", "Yes."))


DROPPED: dict[str, tuple[Any, str, str]] = {
    "two user turns in a row": (
        [user("a"), user("b")],
        "turn_order",
        "has message 2 of 2 of the user, where one of the assistant must be",
    ),
    "two responses in a row": (
        [user("a"), assistant("b"), assistant("c"), user("d")],
        "turn_order",
        "has message 3 of 4 of the assistant, where one of the user must be",
    ),
    "a system turn in the middle": (
        [user("a"), SYSTEM, user("b")],
        "turn_order",
        "has message 2 of 3 of the system, which only the first one may be",
    ),
    "a tool's turn": (
        [user("a"), {"role": "tool", "content": "b"}, user("c")],
        "unreadable_turn",
        "has message 2 of 3 of no role that is read: an object with role, content",
    ),
    "a call without a text": (
        [user("a"), {"role": "assistant", "content": None, "tool_calls": [1]}, user("c")],
        "unreadable_turn",
        "has message 2 of 3 without a text: an object with role, content, tool_calls",
    ),
    "an empty response": (
        [user("a"), assistant(" "), user("c")],
        "empty",
        "has a turn of the assistant that is empty",
    ),
    "half of a surrogate pair": (
        [user("a"), assistant("b\ud800"), user("c")],
        "invalid_unicode",
        "has a turn of the assistant that is not valid Unicode at character 2",
    ),
}


@pytest.mark.parametrize(("value", "reason", "what"), DROPPED.values(), ids=DROPPED.keys())
def test_a_conversation_that_no_template_takes_is_dropped_and_counted(value: Any, reason: str, what: str) -> None:
    cleaned = clean(["first", value, value])
    assert [prompt.prompt for prompt in cleaned.prompts] == ["first"]
    assert dict(cleaned.dropped) == {reason: 2}
    assert cleaned.first_dropped == {reason: f"value 2 {what}"}


def test_the_first_dropped_conversation_is_named_in_the_log_and_in_the_error(
    tmp_path: Path, make_ctx: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [user("a"), user("b")]
    dataset = write(tmp_path / "p.jsonl", ["a", "b", bad, bad])
    metrics = prepare(make_ctx({"stage": "prepare", "dataset": dataset})).metrics
    assert metrics["dropped_turn_order"] == 2
    what = "in column prompt value 3 has message 2 of 2 of the user, where one of the assistant must be"
    assert caplog.messages == [f"{dataset}: 2 values dropped as turn_order, the first: {what}"]
    with pytest.raises(DataError) as error:
        prepare(make_ctx({"stage": "prepare", "dataset": write(tmp_path / "bad.jsonl", [bad])}))
    assert error.value.message == (
        f"prompts.dataset '{tmp_path}/bad.jsonl' holds no prompt: 1 rows read, dropped: 1 turn_order; "
        f"{what.replace('value 3', 'value 1')}"
    )


class Recorder:
    """A sampler and a reward that keep what they read."""

    def __init__(self) -> None:
        self.tokenizer = make_tokenizer()
        self.read: list[str] = []
        self.scored: list[Pair] = []
        self.identity, self.objectives = "recorder", ()

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Sampled]:
        for request in requests:
            self.read.append(self.tokenizer.decode(request.prompt_token_ids))
            texts = [f"{request.seed % 1000} {index}" for index in range(request.num_samples)]
            samples = [Sample(text=text, num_tokens=1, finish_reason=FinishReason.STOP, seed=0) for text in texts]
            yield Sampled(key=request.key, samples=tuple(samples))

    def close(self) -> None:
        pass

    def rewards(self, pairs: Sequence[Pair], *_: Any) -> list[Reward]:
        self.scored += pairs
        return [Reward(score=float(response.split()[1]), num_tokens=1) for _, response in pairs]


def run_stages(make_ctx: Any, model: Path, dataset: str, recorder: Recorder, **sample: Any) -> dict[str, Any]:
    """Run prepare, sample, score and both curations; return the artifacts by stage."""
    address = {}

    def finish(stage: str, ctx: Any) -> None:
        done[stage] = ctx.output.committed()
        address[stage] = ArtifactRef(stage=stage, hash=EXPERIMENT_HASH)

    done: dict[str, Any] = {}
    ctx = make_ctx({"stage": "prepare", "dataset": dataset, "evaluation_prompts": 1})
    prepare(ctx)
    finish("prepare", ctx)
    inputs = {"prompts": address["prepare"]}
    for name in ("ann", "target"):
        options = {"source": name, "model": {"name": str(model)}, "samples_per_prompt": 2, "max_tokens": 4, **sample}
        parts = {"parts": ["preference"]} if name == "target" else {}
        ctx = make_ctx(
            {"stage": "sample", "backend": "Transformers", **options, **parts}, inputs, stage=f"sample/{name}"
        )
        sampling.run(ctx)
        finish(f"sample/{name}", ctx)
        own = {**inputs, f"samples/{name}": address[f"sample/{name}"]}
        ctx = make_ctx({"stage": "score", "reward": {"name": str(model)}}, own, stage=f"score/{name}")
        scoring.run(ctx)
        finish(f"score/{name}", ctx)
    roles = {stage.replace("sample/", "samples/").replace("score/", "scores/"): ref for stage, ref in address.items()}
    roles = {role: ref for role, ref in roles.items() if "/" in role} | inputs
    sft_roles = {role: ref for role, ref in roles.items() if not role.endswith("/target")}
    for run, stage, given_roles in ((run_sft, "curate-sft", sft_roles), (run_triples, "curate-triples", roles)):
        ctx = make_ctx({"stage": stage}, given_roles)
        run(ctx)
        finish(stage, ctx)
    return done


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    monkeypatch.setattr(sampling, "make_sampler", lambda *_: found)
    monkeypatch.setattr(scoring, "load_scorer", lambda *_, **__: found)
    monkeypatch.setattr(scoring, "reward_details", lambda *_: {"name": "recorder"})
    return found


def conversations(count: int) -> list[Any]:
    """Return conversations, and as many plain prompts with the same last turn."""
    talks = [
        [{**SYSTEM, "content": f"Rule {number}"}, user("Hi"), assistant("Yo"), user(f"q{number}"), assistant("old")]
        for number in range(count)
    ]
    return [*talks, *(f"q{number}" for number in range(count))]


def test_a_conversation_is_sampled_scored_and_trained_as_a_whole(
    tmp_path: Path, make_ctx: Any, tiny_model_dir: Path, recorder: Recorder
) -> None:
    dataset = write(tmp_path / "p.jsonl", conversations(6))
    done = run_stages(make_ctx, tiny_model_dir, dataset, recorder)
    assert done["prepare"].manifest.metrics["left_out_later_turns"] == 6
    seen = set(recorder.read)
    whole = {text for text in seen if text.startswith("<|im_start|>system\nRule ")}
    turns = "user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n<|im_start|>user\nq"
    assert all(turns in text for text in whole)
    assert not any("old" in text for text in recorder.read)
    prompts = {prompt for prompt, _ in recorder.scored}
    talks = {prompt for prompt in prompts if not isinstance(prompt, str)}
    assert len(talks) == len(whole) >= 5
    assert len(prompts) == len(seen) == 11
    assert all([role for role, _ in talk] == ["system", "user", "assistant", "user"] for talk in talks)

    sft = read_sft_rows(done["curate-sft"].file("rows.parquet"))
    triples = read_triples(done["curate-triples"].file("triples.parquet"), has_source=True)
    trained = {row.row_id: row.prompt for row in [*sft, *triples]}
    assert set(trained.values()) == prompts
    params = OptimizerParams.model_validate({"learning_rate": 1, "max_length": 500, "max_prompt_length": 400})
    tokenized = tokenize_rows([*sft, *triples], ChatEncoder(recorder.tokenizer), params)
    assert {recorder.tokenizer.decode(row.prompt) for row in tokenized.rows} == seen


def test_held_out_conversations_are_items_with_their_history(
    tmp_path: Path, make_ctx: Any, tiny_model_dir: Path, recorder: Recorder
) -> None:
    dataset = write(tmp_path / "p.jsonl", conversations(6)[:6])
    run_stages(make_ctx, tiny_model_dir, dataset, recorder)
    role = {"prompts": ArtifactRef(stage="prepare", hash=EXPERIMENT_HASH)}
    params = {"stage": "sample", "source": "a", "model": {"name": str(tiny_model_dir)}, "max_tokens": 1}
    (item,) = read_items(make_ctx({**params, "backend": "Transformers"}, role))
    number = item.turns[0][1]
    assert item.turns == (f"q{number}",)
    assert item.messages == ({"role": "system", "content": f"Rule {number}"}, user("Hi"), assistant("Yo"))


def test_a_system_turn_of_the_data_replaces_the_experiments_system_prompt(
    tmp_path: Path, make_ctx: Any, tiny_model_dir: Path, recorder: Recorder
) -> None:
    dataset = write(tmp_path / "p.jsonl", conversations(6))
    run_stages(make_ctx, tiny_model_dir, dataset, recorder, system_prompt="Of the experiment")
    begins = {text.split("<|im_end|>")[0].removeprefix("<|im_start|>system\n")[:4] for text in recorder.read}
    assert begins == {"Rule", "Of t"}


def test_control_tokens_in_the_history_are_text() -> None:
    tokenizer = make_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    (prompt,) = clean([CONVERSATION]).prompts
    encoded = ChatEncoder(tokenizer).encode((*prompt.history, ("user", prompt.prompt)), ["Six."])
    assert encoded.has_control_text
    assert encoded.prompt_ids == conversation_prompt_ids(tokenizer, CONVERSATION)
    assert encoded.prompt_ids.count(end) == len(CONVERSATION)


def test_rows_of_conversations_differ_although_their_last_turns_and_responses_are_equal(
    make_ctx: Any, commit_artifact: Any
) -> None:
    histories = [None, [user("a"), assistant("b")], [user("c"), assistant("d")], [user("a"), assistant("b")]]
    ids = [f"p{number}" for number in range(4)]
    prompts = pl.DataFrame(
        {"prompt_id": ids, "prompt": ["q"] * 4, "history": histories}, schema={**records.PROMPTS, **records.HISTORY}
    )
    given_rows = [(each, "target", index, f"t{index}", 1, "stop", 0) for each in ids for index in range(2)]
    samples = pl.DataFrame(given_rows, schema=records.SAMPLES, orient="row")
    scores = samples.select("prompt_id", "source", "sample_index", score=pl.col("sample_index").cast(pl.Float64))
    refs = {
        "prompts": commit_artifact("prepare", {"preference.parquet": prompts}),
        "samples/target": commit_artifact("sample/target", {"parts/part-00000.parquet": samples}),
        "scores/target": commit_artifact(
            "score/target", {"parts/part-00000.parquet": scores.with_columns(truncated=pl.lit(value=False))}
        ),
    }
    ctx = make_ctx({"stage": "curate-triples", "needs_source": False, "drop_duplicates": True}, refs)
    assert run_triples(ctx).metrics["dropped_duplicate"] == 1
    artifact = ctx.output.committed()
    assert pl.read_parquet(artifact.file("triples.parquet"))["prompt_id"].to_list() == ["p0", "p1", "p2"]
    published = [json.loads(line)["prompt"] for line in artifact.file("triples.jsonl").read_text().splitlines()]
    assert published == [[user("q")], [*histories[1], user("q")], [*histories[2], user("q")]]  # type: ignore[misc]
