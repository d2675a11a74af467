"""The evaluate stage on tiny random models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from engine_support import save_tiny_model

from wrpo_engine.artifacts import records
from wrpo_engine.config import ArtifactRef, EvaluateModel, EvaluateParams, ExitCode, ModelRef, RewardModel
from wrpo_engine.errors import ConfigError, DataError, Interrupted
from wrpo_engine.evaluation import answers as answers_module
from wrpo_engine.evaluation import isolation, stage
from wrpo_engine.evaluation.answers import AnswerJob
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.process.hang_watch import HangWatch
from wrpo_engine.sampling.sampler import SamplerSettings
from wrpo_engine.stage import StageContext, StopRequest

PROMPTS = [("p1", "What is one?"), ("p2", "What is two?"), ("p3", "What is three?")]
MakeCtx = Callable[..., StageContext]
Commit = Callable[..., ArtifactRef]


def prompts_frame(rows: list[tuple[str, str]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=records.PROMPTS, orient="row")


@pytest.fixture
def params(tiny_model_dir: Path, tiny_reward_dir: Path) -> EvaluateParams:
    return EvaluateParams(
        models=(
            EvaluateModel(label="target", model=ModelRef(name=str(tiny_model_dir))),
            EvaluateModel(label="WRPO-DPO", model=ModelRef(name=str(tiny_model_dir))),
        ),
        reward=RewardModel(name=str(tiny_reward_dir)),
        backend="Transformers",
        max_tokens=4,
        dtype="float32",
    )


def committed(ctx: StageContext) -> tuple[dict[str, Any], pl.DataFrame]:
    artifact = ctx.output.committed()
    assert artifact is not None
    assert artifact.files() == ["answers.parquet", "evaluation.json"]
    return json.loads(artifact.file("evaluation.json").read_text()), pl.read_parquet(artifact.file("answers.parquet"))


def test_a_model_ties_with_itself_on_every_prompt(
    make_ctx: MakeCtx, commit_artifact: Commit, params: EvaluateParams
) -> None:
    ctx = make_ctx(params, {"prompts": commit_artifact("prepare", {"evaluation.parquet": prompts_frame(PROMPTS)})})
    result = stage.run(ctx)
    evaluation, answers = committed(ctx)
    assert evaluation["win_rates"]["target"] | {"ci_low": 0, "ci_high": 0} == {
        "win": 0,
        "tie": 3,
        "loss": 0,
        "rate": 0.5,
        "ci_low": 0,
        "ci_high": 0,
        "n": 3,
    }
    assert evaluation["mean_reward"]["target"] == evaluation["mean_reward"]["WRPO-DPO"]
    assert result.rows == 6
    assert result.metrics["win_rate_vs_target"] == 0.5
    assert answers["prompt_id"].to_list() == ["p1", "p2", "p3"] * 2
    assert sorted(path.name for path in ctx.output.directory.iterdir()) == [
        "answers.parquet",
        "evaluation.json",
        "manifest.json",
    ]


def test_each_source_s_share_of_the_triples_is_reported(
    make_ctx: MakeCtx, commit_artifact: Commit, params: EvaluateParams
) -> None:
    rows = [(f"p{n}", "q", "s", "t", "l", "big" if n else "small", 1.0, 0.5, 0.0) for n in range(4)]
    triples = pl.DataFrame(rows, schema=records.TRIPLES, orient="row")
    inputs = {
        "prompts": commit_artifact("prepare", {"evaluation.parquet": prompts_frame(PROMPTS[:1])}),
        "triples": commit_artifact("curate-triples", {"triples.parquet": triples}),
    }
    ctx = make_ctx(params, inputs)
    stage.run(ctx)
    assert committed(ctx)[0]["source_share"] == {"big": 0.75, "small": 0.25}


def test_a_killed_evaluation_continues_with_the_next_model_and_ends_with_the_same_bytes(
    make_ctx: MakeCtx,
    commit_artifact: Commit,
    params: EvaluateParams,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = {"prompts": commit_artifact("prepare", {"evaluation.parquet": prompts_frame(PROMPTS)})}
    whole = make_ctx(params, inputs, hash_="a" * 16)
    stage.run(whole)
    asked: list[str] = []
    stop = StopRequest()
    original = answers_module.answer

    def answer_once(job: AnswerJob, on_answer: Callable[[int], None], poll: Callable[[], None]) -> pl.DataFrame:
        asked.append(job.label)
        rows = original(job, on_answer, poll)
        stop.request()
        return rows

    monkeypatch.setattr(stage, "answer", answer_once)
    with pytest.raises(Interrupted):
        stage.run(make_ctx(params, inputs, stop=stop))
    stop = StopRequest()
    resumed = make_ctx(params, inputs)
    stage.run(resumed)
    assert asked == ["target", "WRPO-DPO"]
    for name in ("answers.parquet", "evaluation.json"):
        assert (resumed.output.directory / name).read_bytes() == (whole.output.directory / name).read_bytes()


def test_an_evaluation_without_held_out_prompts_names_the_field(
    make_ctx: MakeCtx, commit_artifact: Commit, params: EvaluateParams
) -> None:
    ctx = make_ctx(params, {"prompts": commit_artifact("prepare", {"evaluation.parquet": prompts_frame([])})})
    with pytest.raises(DataError, match="no held-out prompts") as raised:
        stage.run(ctx)
    assert raised.value.info().field == "prompts.evaluation.prompts"
    assert ctx.output.committed() is None


def test_held_out_prompts_that_are_all_longer_than_the_context_are_named_with_both_lengths(
    make_ctx: MakeCtx, commit_artifact: Commit, params: EvaluateParams
) -> None:
    frame = prompts_frame([("long", "x" * 600)])
    ctx = make_ctx(params, {"prompts": commit_artifact("prepare", {"evaluation.parquet": frame})})
    with pytest.raises(DataError, match=r"prompt long has \d{3} tokens .* holds 512"):
        stage.run(ctx)


def test_a_held_out_prompt_too_long_for_one_model_is_left_out_for_all_and_counted(
    make_ctx: MakeCtx,
    commit_artifact: Commit,
    params: EvaluateParams,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    narrow = EvaluateModel(label="narrow", model=ModelRef(name=str(save_tiny_model(tmp_path / "narrow", context=64))))
    two = params.model_copy(update={"models": (narrow, params.models[1])})
    frame = prompts_frame([*PROMPTS, ("long", "x" * 100)])
    ctx = make_ctx(two, {"prompts": commit_artifact("prepare", {"evaluation.parquet": frame})})
    with caplog.at_level("WARNING", "wrpo_engine"):
        result = stage.run(ctx)
    evaluation, answers = committed(ctx)
    assert answers["prompt_id"].to_list() == ["p1", "p2", "p3"] * 2
    assert evaluation["win_rates"]["narrow"]["n"] == evaluation["num_prompts"] == 3
    assert evaluation["skipped_prompt_too_long"] == 1
    assert result.metrics["skipped_prompt_too_long"] == 1.0
    assert caplog.messages == ["left out, because they are too long for a model's context: 1 prompts (long)"]


def test_the_length_that_sampling_is_given_holds_in_evaluation_too(
    make_ctx: MakeCtx, commit_artifact: Commit, params: EvaluateParams
) -> None:
    rows = [*PROMPTS, ("long", "word " * 40)]
    ctx = make_ctx(
        params,
        {"prompts": commit_artifact("prepare", {"evaluation.parquet": prompts_frame(rows)})},
        runtime={"context_limit": 48},
    )
    result = stage.run(ctx)
    assert result.metrics["skipped_prompt_too_long"] == 1.0
    assert "long" not in set(committed(ctx)[1]["prompt_id"])


def test_vllm_is_given_the_engine_arguments_and_the_length(
    monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path, params: EvaluateParams
) -> None:
    seen: list[SamplerSettings] = []

    def make(_backend: object, _model: object, _tokenizer: object, settings: SamplerSettings) -> None:
        seen.append(settings)
        raise Interrupted

    monkeypatch.setattr(answers_module, "make_sampler", make)
    job = AnswerJob(
        label="target",
        model=ResolvedModel(tiny_model_dir, "tiny", None),
        prompts=PROMPTS,
        params=params,
        engine_args={"kv_cache_dtype": "fp8", "max_num_seqs": 4},
        context_limit=40,
    )
    with pytest.raises(Interrupted):
        answers_module.answer(job, lambda _: None)
    assert seen[0].engine_args == {"kv_cache_dtype": "fp8", "max_num_seqs": 4}
    assert seen[0].max_model_length is not None
    assert seen[0].max_model_length <= 40


def test_engine_arguments_are_refused_where_vllm_does_not_run(make_ctx: MakeCtx, params: EvaluateParams) -> None:
    with pytest.raises(ConfigError) as error:
        stage.run(make_ctx(params, {}, runtime={"engine_args": {"max_num_seqs": 4}}))
    assert error.value.message.startswith("sampling.engineArgs is 'max_num_seqs'")


def test_sampling_in_evaluation_is_watched_and_each_decoding_step_is_progress(
    monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path, params: EvaluateParams
) -> None:
    beats: list[float] = []

    class Watch(HangWatch):
        def beat(self) -> None:
            beats.append(self._timeout_s)
            super().beat()

    monkeypatch.setattr(answers_module, "HangWatch", Watch)
    model = ResolvedModel(tiny_model_dir, "tiny", None)
    job = AnswerJob(label="target", model=model, prompts=PROMPTS, params=params, hang_timeout_s=500)
    polled: list[None] = []
    answers_module.answer(job, lambda _: None, lambda: polled.append(None))
    # One more at the start of the watch.
    assert beats == [500] * (len(polled) + 1)
    assert len(polled) > 1


def test_a_process_that_hung_says_so() -> None:
    error = isolation._died("target", ExitCode.TEMPORARY)
    assert error.message == "the process that samples from target ended with exit code 75 before it was done"
    assert error.hint == "It made no progress for too long; the pod's log shows the stacks of its threads."
    assert str(isolation._died("target", -9).hint).startswith("Signal 9 usually means that memory ran out")


def test_models_without_a_prompt_that_fits_all_of_them_are_named() -> None:
    rows = {
        label: pl.DataFrame(
            [(label, key, "?", 0, "", 0, "prompt_too_long" if key == long else "stop") for key in ("p1", "p2")],
            schema=answers_module.ANSWERS,
            orient="row",
        )
        for label, long in (("a", "p1"), ("b", "p2"))
    }
    with pytest.raises(DataError) as error:
        answers_module.common_prompts(rows)
    assert error.value.message == (
        "each of the 2 held-out prompts is too long for the context of one of the models a, b"
    )


def test_two_models_cannot_share_a_label(make_ctx: MakeCtx, commit_artifact: Commit, params: EvaluateParams) -> None:
    twice = params.model_copy(update={"models": (params.models[0], params.models[0])})
    ctx = make_ctx(twice, {"prompts": commit_artifact("prepare", {"evaluation.parquet": prompts_frame(PROMPTS)})})
    with pytest.raises(ConfigError, match="labels must be unique"):
        stage.run(ctx)


def test_several_rewards_give_their_weighted_mean_and_stay_apart(
    make_ctx: MakeCtx,
    commit_artifact: Commit,
    params: EvaluateParams,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "evaluation_rewards.py").write_text(
        "def length(prompts, responses):\n    return [float(len(r)) for r in responses]\n"
        "def prompt(prompts, responses):\n    return [float(len(p)) for p in prompts]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    several = params.model_copy(
        update={
            "reward": RewardModel(function="evaluation_rewards:length"),
            "more_rewards": (RewardModel(function="evaluation_rewards:prompt"), params.reward),
            "reward_weights": (1.0, 2.0, 1.0),
        }
    )
    inputs = {"prompts": commit_artifact("prepare", {"evaluation.parquet": prompts_frame(PROMPTS)})}
    ctx = make_ctx(several, inputs)
    stage.run(ctx)
    evaluation, answers = committed(ctx)
    columns = ["reward/evaluation_rewards:length", "reward/evaluation_rewards:prompt", f"reward/{params.reward.name}"]
    assert answers.columns[-4:] == ["score", *columns]
    assert answers[columns[0]].to_list() == [float(len(text)) for text in answers["text"]]
    assert answers[columns[1]].to_list() == [float(len(text)) for text in answers["prompt"]]
    expected = (answers[columns[0]] + 2 * answers[columns[1]] + answers[columns[2]]) / 4
    assert answers["score"].to_list() == pytest.approx(expected.to_list())
    assert evaluation["mean_reward_by_reward"]["evaluation_rewards:prompt"]["target"] == pytest.approx(
        sum(len(prompt) for _, prompt in PROMPTS) / 3
    )
    manifest = ctx.output.committed()
    assert manifest is not None
    assert [entry["weight"] for entry in manifest.manifest.details["rewards"]] == [0.25, 0.5, 0.25]


@pytest.mark.parametrize("weights", [(1.0,), (0.0, 0.0), (1.0, -1.0), (1.0, float("nan"))])
def test_weights_that_fit_no_mean_are_refused_before_any_work(
    make_ctx: MakeCtx, params: EvaluateParams, weights: tuple[float, ...]
) -> None:
    wrong = params.model_copy(update={"more_rewards": (params.reward,), "reward_weights": weights})
    with pytest.raises(ConfigError, match="one weight of 0 or more for each of the 2 rewards") as error:
        stage.run(make_ctx(wrong))
    assert error.value.field == "reward.weight"


def test_an_error_in_a_model_s_own_process_comes_back_as_itself() -> None:
    error = isolation._rebuilt(("ConfigError", ConfigError("model", "m", "it is wrong", "Fix it.").info().model_dump()))
    assert isinstance(error, ConfigError)
    assert str(error) == "model is 'm': it is wrong"
    assert error.info().hint == "Fix it."


@pytest.mark.slow
def test_a_model_answers_the_same_in_a_process_of_its_own(tiny_model_dir: Path, params: EvaluateParams) -> None:
    job = AnswerJob(label="target", model=ResolvedModel(tiny_model_dir, "tiny", None), prompts=PROMPTS, params=params)
    seen: list[int] = []
    apart = isolation.answer_in_process(job, seen.append, StopRequest())
    assert apart.equals(answers_module.answer(job, lambda _: None))
    assert seen[-1] == 3
