"""The evaluate stage on artifacts of answers, grades and verdicts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl
import pytest
from evaluation_support import PROMPTS, REWARD, Cells

from wrpo_engine.comparison.length_control import LengthControl, details_of
from wrpo_engine.contract.evaluation import EvaluatedBenchmark, EvaluatedSystem, EvaluateParams
from wrpo_engine.errors import ConfigError, DataError, Interrupted
from wrpo_engine.evaluation import stage
from wrpo_engine.stage import StageContext, StopRequest

MakeCtx = Callable[..., StageContext]
HELD_OUT = EvaluatedBenchmark(name="held-out", kind="HeldOutReward", rewards=("main",))
TARGET = EvaluatedSystem(name="target", label="target")
TRAINED = EvaluatedSystem(name="trained", label="WRPO-DPO", uses_reward=True)
TEXTS = {"p1": ["one two"], "p2": ["three"], "p3": ["four five six"]}
LOW = {"p1": 0.1, "p2": 0.4, "p3": 0.5}
HIGH = {"p1": 0.3, "p2": 0.4, "p3": 0.2}


def params(**changes: Any) -> EvaluateParams:
    plain: dict[str, Any] = {
        "systems": (TARGET, TRAINED),
        "benchmarks": (HELD_OUT,),
        "subject": "trained",
        "opponents": ("target",),
        "resamples": 200,
    }
    return EvaluateParams(**(plain | changes))


@pytest.fixture
def held_out(cells: Cells) -> Cells:
    """Target and trained model on three held-out prompts: one win, one tie, one loss."""
    cells.prompts()
    for system, scores in (("target", LOW), ("trained", HIGH)):
        cells.answers(system, "held-out", TEXTS)
        cells.grades(system, "held-out", scores)
    return cells


def read(ctx: StageContext, name: str) -> Any:
    artifact = ctx.output.committed()
    assert artifact is not None
    path = artifact.file(name)
    return pl.read_parquet(path) if name.endswith(".parquet") else json.loads(path.read_text(encoding="utf-8"))


def evaluated(make_ctx: MakeCtx, cells: Cells, asked: EvaluateParams) -> StageContext:
    ctx = make_ctx(asked, cells.inputs)
    stage.run(ctx)
    return ctx


def column_of(content: Mapping[str, Any], judge: str) -> dict[str, Any]:
    found: dict[str, Any] = next(column for column in content["columns"] if column["judge"] == judge)
    return found


def cell_of(content: Mapping[str, Any], judge: str, system: str) -> dict[str, Any]:
    found: dict[str, Any] = next(cell for cell in column_of(content, judge)["cells"] if cell["system"] == system)
    return found


def test_held_out_prompts_give_win_rates_means_and_answers_by_label(make_ctx: MakeCtx, held_out: Cells) -> None:
    held_out.triples(["big", "big", "small", None])
    ctx = make_ctx(params(), held_out.inputs)
    result = stage.run(ctx)
    evaluation, answers = read(ctx, "evaluation.json"), read(ctx, "answers.parquet")
    assert evaluation["labels"] == ["target", "WRPO-DPO"]
    assert evaluation["win_rates"]["target"] | {"ci_low": 0, "ci_high": 0} == {
        "win": 1,
        "tie": 1,
        "loss": 1,
        "rate": 0.5,
        "ci_low": 0,
        "ci_high": 0,
        "n": 3,
    }
    assert evaluation["mean_reward"] == {"target": pytest.approx(1 / 3), "WRPO-DPO": pytest.approx(0.3)}
    assert evaluation["mean_tokens"] == {"target": 2.0, "WRPO-DPO": 2.0}
    assert evaluation["source_share"] == {"big": pytest.approx(2 / 3), "small": pytest.approx(1 / 3)}
    assert (evaluation["num_prompts"], evaluation["skipped_prompt_too_long"]) == (3, 0)
    assert "mean_reward_by_reward" not in evaluation
    assert answers.columns == [
        "label",
        "prompt_id",
        "prompt",
        "sample_index",
        "text",
        "num_tokens",
        "finish_reason",
        "score",
    ]
    assert answers["prompt_id"].to_list() == ["p1", "p2", "p3"] * 2
    assert answers["prompt"].to_list() == [prompt for _, prompt in PROMPTS] * 2
    assert answers["score"].to_list() == [0.1, 0.4, 0.5, 0.3, 0.4, 0.2]
    assert result.metrics["win_rate_vs_target"] == 0.5
    assert result.metrics["score_held-out_main"] == pytest.approx(0.3)
    assert result.metrics["score_held-out_main_low"] < 0.3 < result.metrics["score_held-out_main_high"]
    assert result.metrics["own_held-out_main"] == 1.0
    manifest = ctx.output.committed()
    assert manifest is not None
    assert manifest.manifest.details["reward"] == REWARD
    assert manifest.manifest.details["models"]["WRPO-DPO"] == {"name": "org/trained", "revision": None}


def test_a_prompt_s_score_is_the_mean_over_its_responses(make_ctx: MakeCtx, cells: Cells) -> None:
    cells.prompts(PROMPTS[:1])
    for system in ("target", "trained"):
        cells.answers(system, "held-out", {"p1": ["a"]}, samples=2)
        cells.grades(system, "held-out", {"p1": 1.0}, samples=2)
    ctx = evaluated(make_ctx, cells, params())
    assert read(ctx, "evaluation.json")["mean_reward"]["target"] == 1.25
    assert cell_of(read(ctx, "benchmarks.json"), "main", "target")["score"] == 1.25


def test_a_held_out_prompt_too_long_for_one_model_is_left_out_for_all_and_counted(
    make_ctx: MakeCtx, cells: Cells, caplog: pytest.LogCaptureFixture
) -> None:
    cells.prompts()
    cells.answers("target", "held-out", TEXTS, too_long=["p2"])
    cells.grades("target", "held-out", {"p1": 0.1, "p3": 0.5})
    cells.answers("trained", "held-out", TEXTS)
    cells.grades("trained", "held-out", HIGH)
    with caplog.at_level("WARNING", "wrpo_engine"):
        ctx = evaluated(make_ctx, cells, params())
    evaluation = read(ctx, "evaluation.json")
    assert (evaluation["num_prompts"], evaluation["skipped_prompt_too_long"]) == (2, 1)
    assert read(ctx, "answers.parquet")["prompt_id"].to_list() == ["p1", "p3"] * 2
    assert caplog.messages == ["left out, because they are too long for a model's context: 1 prompts (p2)"]
    content = read(ctx, "benchmarks.json")
    assert column_of(content, "main")["common_items"] == 2
    own = cell_of(content, "main", "trained")
    assert (own["items"], own["common"]["items"]) == (3, 2)
    assert (own["score"], own["common"]["score"]) == (pytest.approx(0.3), pytest.approx(0.25))
    assert cell_of(content, "main", "target")["counts"] == {"ok": 2.0, "too_long": 1.0}


def test_models_without_a_prompt_that_fits_all_of_them_are_named(make_ctx: MakeCtx, cells: Cells) -> None:
    cells.prompts(PROMPTS[:2])
    texts = {"p1": ["a"], "p2": ["b"]}
    for system, long in (("target", "p1"), ("trained", "p2")):
        cells.answers(system, "held-out", texts, too_long=[long])
        cells.grades(system, "held-out", {item: 1.0 for item in texts if item != long})
    with pytest.raises(DataError) as error:
        evaluated(make_ctx, cells, params())
    assert error.value.message == (
        "each of the 2 held-out prompts is too long for the context of one of the models target, WRPO-DPO"
    )


def test_several_rewards_give_their_weighted_mean_and_stay_apart(make_ctx: MakeCtx, held_out: Cells) -> None:
    for system in ("target", "trained"):
        held_out.grades(system, "held-out", {"p1": 1.0, "p2": 2.0, "p3": 3.0}, "second", about={"function": "m:second"})
        held_out.grades(system, "held-out", LOW, "judge-only", about={"name": "org/other", "revision": None})
    benchmark = HELD_OUT.model_copy(update={"rewards": ("main", "second", "judge-only")})
    ctx = evaluated(make_ctx, held_out, params(benchmarks=(benchmark,), reward_weights={"main": 1, "second": 3}))
    answers = read(ctx, "answers.parquet")
    assert answers.columns[-3:] == ["score", "reward/org/reward", "reward/m:second"]
    assert answers["score"].to_list()[:3] == pytest.approx([0.775, 1.6, 2.375])
    assert read(ctx, "evaluation.json")["mean_reward_by_reward"]["m:second"] == {"target": 2.0, "WRPO-DPO": 2.0}
    artifact = ctx.output.committed()
    assert artifact is not None
    assert artifact.manifest.details["rewards"] == [
        {**REWARD, "weight": 0.25},
        {"function": "m:second", "weight": 0.75},
    ]
    content = read(ctx, "benchmarks.json")
    marks = {
        (column["judge"], cell["system"]): cell["judged_by_own_reward"]
        for column in content["columns"]
        for cell in column["cells"]
    }
    assert [key for key, marked in marks.items() if marked] == [("main", "trained"), ("second", "trained")]
    assert [system["judged_only_by_own_reward"] for system in content["systems"]] == [False, False]


def test_a_system_that_only_its_own_reward_judges_is_marked(make_ctx: MakeCtx, held_out: Cells) -> None:
    content = read(evaluated(make_ctx, held_out, params()), "benchmarks.json")
    assert {system["name"]: system["judged_only_by_own_reward"] for system in content["systems"]} == {
        "target": False,
        "trained": True,
    }


def test_equal_rewards_keep_a_column_each(make_ctx: MakeCtx, held_out: Cells) -> None:
    for system in ("target", "trained"):
        held_out.grades(system, "held-out", LOW, "again")
    benchmark = HELD_OUT.model_copy(update={"rewards": ("main", "again")})
    ctx = evaluated(make_ctx, held_out, params(benchmarks=(benchmark,), reward_weights={"main": 1, "again": 1}))
    assert read(ctx, "answers.parquet").columns[-2:] == ["reward/org/reward", "reward/org/reward#2"]


ARENA = EvaluatedBenchmark(name="arena", kind="ArenaHard", protocol="ArenaHard", judges=("gpt",))
ITEMS = [(f"q{n}", [f"question {n}"]) for n in range(4)]
ANSWERS = {f"q{n}": [f"answer {n}"] for n in range(4)}


def arena(cells: Cells, system: str, values: list[float | None], weights: list[float], **more: Any) -> None:
    cells.answers(system, "arena", ANSWERS)
    rows = [
        (f"q{n}", value, weight, value is not None)
        for n, (value, weight) in enumerate(zip(values, weights, strict=True))
    ]
    cells.verdicts(system, "arena", rows, **more)


def test_a_benchmark_s_score_is_weighted_and_shown_on_common_items_too(make_ctx: MakeCtx, cells: Cells) -> None:
    cells.bench("arena", ITEMS)
    arena(cells, "target", [1.0, 0.0, 0.5, None], [6, 2, 2, 1])
    arena(cells, "trained", [1.0, 1.0, 0.5, 0.0], [2, 2, 2, 6])
    content = read(evaluated(make_ctx, cells, params(benchmarks=(ARENA,))), "benchmarks.json")
    column = column_of(content, "gpt")
    assert (column["unit"], column["baseline"], column["items"], column["common_items"]) == ("%", "target", 4, 3)
    assert column["identity"] == {"model": "org/judge", "protocol": "Logprobs"}
    target, trained = (cell_of(content, "gpt", name) for name in ("target", "trained"))
    assert (target["score"], target["items"], target["common"]) == (pytest.approx(70.0), 3, None)
    assert trained["score"] == pytest.approx(100 * 5 / 12)
    assert trained["common"]["score"] == pytest.approx(100 * 5 / 6)
    assert trained["difference"]["mean"] == pytest.approx(100 * (5 / 6 - 0.7))
    assert (trained["difference"]["wins"], trained["difference"]["losses"]) == (1, 0)
    assert target["counts"] == {"ok": 3.0, "unparsable": 1.0}
    assert target["invalid_share"] == 0.25
    assert target["answers"] == {
        "characters": 8.0,
        "tokens": 2.0,
        "tokens_read": 7.0,
        "truncated": 0.0,
        "empty": 0.0,
        "too_long": 0.0,
    }
    assert column["win_rates"] == {"systems": ["target", "trained"], "rates": [[None, 1 / 3], [2 / 3, None]]}


@pytest.mark.parametrize(("reported", "differ"), [(["m-1"], False), (["m-2"], True)])
def test_a_baseline_that_needs_no_request_says_nothing_of_the_judge(
    make_ctx: MakeCtx, cells: Cells, reported: list[str], differ: bool
) -> None:
    cells.bench("arena", ITEMS)
    for system, names in {"target": [], "sft": ["m-1"], "trained": reported}.items():
        arena(cells, system, [0.5] * 4, [1.0] * 4, about={"model": "m", "reported": names})
    three = (TARGET, EvaluatedSystem(name="sft", label="sft"), TRAINED)
    content = read(evaluated(make_ctx, cells, params(benchmarks=(ARENA,), systems=three)), "benchmarks.json")
    column = column_of(content, "gpt")
    assert (column["identity"]["reported"], column["identities_differ"]) == (["m-1"], differ)


def test_an_evaluation_without_held_out_prompts_has_benchmarks_alone(make_ctx: MakeCtx, cells: Cells) -> None:
    cells.bench("arena", ITEMS)
    for system in ("target", "trained"):
        arena(cells, system, [1.0] * 4, [2.0] * 4)
    ctx = evaluated(make_ctx, cells, params(benchmarks=(ARENA,)))
    artifact = ctx.output.committed()
    assert artifact is not None
    assert sorted(artifact.files()) == ["benchmarks.json", "examples.json", "outcomes.parquet"]
    outcomes = read(ctx, "outcomes.parquet")
    assert outcomes.height == 8
    assert outcomes.row(0, named=True) == {
        "system": "target",
        "benchmark": "arena",
        "judge": "gpt",
        "item_id": "q0",
        "value": 1.0,
        "weight": 2.0,
        "valid": True,
        "characters": 8.0,
        "features": None,
    }


def test_the_place_of_an_answer_shows_in_the_verdicts(make_ctx: MakeCtx, cells: Cells) -> None:
    cells.bench("arena", ITEMS)
    asked = [
        (f"q{n}", order, 0, "ok", label, value)
        for n in range(4)
        for order, label, value in ((0, "A>B", 0.0), (1, "A>B", 1.0 if n < 3 else 0.0))
    ]
    for system in ("target", "trained"):
        arena(cells, system, [0.5] * 4, [2.0] * 4, asked=asked)
    content = read(evaluated(make_ctx, cells, params(benchmarks=(ARENA,))), "benchmarks.json")
    assert cell_of(content, "gpt", "target")["position"] == {"advantage": 75.0, "contradicted": 0.75}


def test_turns_have_a_mean_each(make_ctx: MakeCtx, cells: Cells) -> None:
    turns = EvaluatedBenchmark(name="mt", kind="MTBench", protocol="MTBench", judges=("gpt",))
    cells.bench("mt", [("1", ["a", "b"]), ("2", ["c", "d"])])
    asked: list[tuple[Any, ...]] = [
        ("1", 0, 0, "ok", "8", 8.0),
        ("1", 0, 1, "ok", "6", 6.0),
        ("2", 0, 0, "ok", "7", 7.0),
    ]
    asked.append(("2", 0, 1, "unparsable", "", None))
    for system in ("target", "trained"):
        cells.answers(system, "mt", {"1": ["x", "y"], "2": ["x", "y"]})
        cells.verdicts(system, "mt", [("1", 7.0, 2.0, True), ("2", 7.0, 1.0, True)], asked=asked)
    cell = cell_of(read(evaluated(make_ctx, cells, params(benchmarks=(turns,))), "benchmarks.json"), "gpt", "target")
    assert cell["score"] == 7.0
    assert cell["turns"] == [{"turn": 0, "score": 7.5, "verdicts": 2}, {"turn": 1, "score": 6.0, "verdicts": 1}]
    assert cell["invalid_share"] == 0.25


def test_a_length_controlled_score_has_the_interval_of_refitted_resamples(make_ctx: MakeCtx, cells: Cells) -> None:
    items = [(f"q{n}", ["?"]) for n in range(30)]
    rng = np.random.default_rng(1)
    features = {item: [float(np.tanh(rng.normal())), 1.0] for item, _ in items}
    values = [float(value) for value in rng.random(30)]
    cells.bench("alpaca", items)
    for system in ("target", "trained"):
        cells.answers(system, "alpaca", {item: ["text"] for item, _ in items})
        cells.verdicts(
            system,
            "alpaca",
            [(item, value, 1.0, True) for (item, _), value in zip(items, values, strict=True)],
            metrics={"win_rate": 50.0, "lc_minimal_win_rate": 47.5, "invalid_share": 0.0},
            details={"length_control": details_of("LC-minimal", "lc_minimal_win_rate", features)},
        )
    alpaca = EvaluatedBenchmark(name="alpaca", kind="AlpacaEval2", protocol="AlpacaEval2", judges=("gpt",))
    ctx = evaluated(make_ctx, cells, params(benchmarks=(alpaca,)))
    content = read(ctx, "benchmarks.json")
    found = cell_of(content, "gpt", "trained")
    # Items are resampled in the order of their ids.
    order = sorted(range(30), key=lambda n: items[n][0])
    control = LengthControl(
        features=np.array([features[items[n][0]] for n in order]), outcomes=np.array([values[n] for n in order])
    )
    low, high = np.quantile(100 * control.resampled(seed=0, resamples=200), [0.025, 0.975])
    assert found["length_controlled"] == {
        "form": "LC-minimal",
        "score": 47.5,
        "interval": {"low": pytest.approx(low), "high": pytest.approx(high)},
    }
    assert found["length_controlled_difference"]["mean"] == 0.0
    metrics = ctx.output.committed().manifest.metrics  # type: ignore[union-attr]
    headline = [metrics[f"lc-minimal_alpaca_gpt{side}"] for side in ("", "_low", "_high")]
    assert headline == [47.5, pytest.approx(low), pytest.approx(high)]
    assert "score_alpaca_gpt_low" not in metrics
    assert read(ctx, "outcomes.parquet")["features"][0].to_list() == features["q0"]


def test_two_judges_of_one_benchmark_are_compared(make_ctx: MakeCtx, cells: Cells) -> None:
    cells.bench("arena", ITEMS)
    values = {"target": [0.0, 0.0, 0.5, 0.5], "trained": [1.0, 1.0, 1.0, 0.5]}
    for system, row in values.items():
        arena(cells, system, list(row), [2.0] * 4)
        other = [(f"q{n}", value, 1.0, True) for n, value in enumerate(row)]
        cells.verdicts(system, "arena", other, judge="local", about={"model": "local"})
    both = ARENA.model_copy(update={"judges": ("gpt", "local")})
    (found,) = read(evaluated(make_ctx, cells, params(benchmarks=(both,))), "benchmarks.json")["agreement"]
    assert (found["judges"], found["kendall"], found["share"], found["pairs"]) == (["gpt", "local"], 1.0, 1.0, 3)


def test_costs_add_up_over_members(make_ctx: MakeCtx, cells: Cells) -> None:
    cells.bench("arena", ITEMS)
    systems = (
        *(EvaluatedSystem(name=name, label=name) for name in ("a", "b", "trained")),
        EvaluatedSystem(name="packllm", label="packllm", form="Select", answers="selected", members=("a", "b")),
        EvaluatedSystem(
            name="moa",
            label="moa",
            form="Mixture",
            answers="mixture",
            members=("a", "b"),
            choices={"aggregator": "c", "rounds": "1"},
        ),
    )
    for system in systems:
        cells.answers(system.name, "arena", ANSWERS, role=system.answers)
        rows = [(item, 1.0, 1.0, True) for item, _ in ITEMS]
        cells.verdicts(system.name, "arena", rows)
    content = read(
        evaluated(make_ctx, cells, params(systems=systems, benchmarks=(ARENA,), opponents=())), "benchmarks.json"
    )
    assert {system["name"]: system["models_resident"] for system in content["systems"]} == {
        "a": 1,
        "b": 1,
        "trained": 1,
        "packllm": 2,
        "moa": 3,
    }
    assert content["systems"][4]["choices"] == {"aggregator": "c", "rounds": "1"}
    assert content["costs"]["packllm"] == {"arena": {"generated": 4.0, "read": 14.0}}
    assert content["costs"]["moa"] == {"arena": {"generated": 6.0, "read": 21.0}}


def test_examples_are_the_first_items_with_answers_and_verdicts(make_ctx: MakeCtx, cells: Cells) -> None:
    cells.bench("arena", ITEMS)
    for system in ("target", "trained"):
        arena(cells, system, [1.0, None, 0.0, 0.5], [2.0] * 4)
    examples = read(evaluated(make_ctx, cells, params(benchmarks=(ARENA,))), "examples.json")
    assert [example["item_id"] for example in examples] == ["q0", "q1", "q2", "q3"]
    assert examples[1]["turns"] == ["question 1"]
    answer = examples[1]["answers"][0]
    assert (answer["system"], answer["texts"]) == ("target", ["answer 1"])
    assert answer["verdicts"] == [
        {"judge": "gpt", "turn": 0, "order": 0, "outcome": "unparsable", "verdict": "", "value": None, "raw": '[""]'}
    ]


def test_an_evaluation_ends_with_the_same_bytes_after_an_interruption(make_ctx: MakeCtx, held_out: Cells) -> None:
    whole = make_ctx(params(), held_out.inputs, hash_="a" * 16)
    stage.run(whole)
    stop = StopRequest()
    stop.request()
    with pytest.raises(Interrupted):
        stage.run(make_ctx(params(), held_out.inputs, stop=stop))
    resumed = evaluated(make_ctx, held_out, params())
    artifact = resumed.output.committed()
    assert artifact is not None
    for name in artifact.files():
        assert (resumed.output.directory / name).read_bytes() == (whole.output.directory / name).read_bytes()


def test_inputs_that_do_not_belong_together_are_named(make_ctx: MakeCtx, cells: Cells) -> None:
    cells.bench("arena", ITEMS)
    for system in ("target", "trained"):
        arena(cells, system, [1.0] * 4, [1.0] * 4)
    cells.bench("other", ITEMS[:3])
    moved = {**cells.inputs, "bench/arena": cells.inputs["bench/other"]}
    with pytest.raises(DataError, match=r"answers/target--arena .* and the benchmark have different items; 1 are") as e:
        stage.run(make_ctx(params(benchmarks=(ARENA,)), moved))
    assert e.value.message.endswith("in one of them only, e.g. q3")
    without = {role: ref for role, ref in cells.inputs.items() if role != "verdicts/trained--arena--gpt"}
    with pytest.raises(ConfigError, match="needs the role 'verdicts/trained--arena--gpt'"):
        stage.run(make_ctx(params(benchmarks=(ARENA,)), without))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("q3", None, 1.0, True), "item q3 is valid with value None and weight 1.0"),
        (("q3", float("nan"), 1.0, True), "item q3 is valid with value nan and weight 1.0"),
        (("q3", 0.5, 0.0, True), "item q3 is valid with value 0.5 and weight 0.0"),
        (("q2", 0.5, 1.0, True), "must have one row for each item of the benchmark; item q3 does not"),
    ],
)
def test_outcomes_that_make_no_score_are_named(
    make_ctx: MakeCtx, cells: Cells, row: tuple[str, float | None, float, bool], message: str
) -> None:
    cells.bench("arena", ITEMS)
    for system in ("target", "trained"):
        cells.answers(system, "arena", ANSWERS)
        rows = [(f"q{n}", 1.0, 1.0, True) for n in range(3)]
        cells.verdicts(system, "arena", [*rows, row])
    with pytest.raises(DataError) as error:
        evaluated(make_ctx, cells, params(benchmarks=(ARENA,)))
    assert message in error.value.message
    assert "verdicts/target--arena--gpt" in error.value.message


def test_an_answer_without_a_score_is_named(make_ctx: MakeCtx, held_out: Cells) -> None:
    held_out.answers("third", "held-out", TEXTS)
    held_out.grades("third", "held-out", {"p1": 1.0, "p3": 1.0})
    third = EvaluatedSystem(name="third", label="third")
    with pytest.raises(DataError, match="has no score of item_id p2, sample_index 0, turn 0; 1 answers have none"):
        evaluated(make_ctx, held_out, params(systems=(TARGET, third, TRAINED)))


def test_an_evaluation_without_items_names_the_field(make_ctx: MakeCtx, cells: Cells) -> None:
    cells.prompts([])
    with pytest.raises(DataError, match="no held-out prompts") as raised:
        evaluated(make_ctx, cells, params())
    assert raised.value.field == "prompts.evaluation.prompts"
    cells.bench("arena", [])
    with pytest.raises(DataError, match="the benchmark arena has no items"):
        evaluated(make_ctx, cells, params(benchmarks=(ARENA,)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"systems": (TARGET, TARGET)}, "names and labels must be unique"),
        ({"systems": (TARGET, TRAINED.model_copy(update={"label": "target"}))}, "names and labels must be unique"),
        ({"benchmarks": (HELD_OUT, HELD_OUT)}, "names and labels must be unique"),
        ({"subject": "nobody"}, "there is no system of this name among target, trained"),
        ({"opponents": ("nobody",)}, "there is no system of this name among target, trained"),
        ({"reward_weights": {"main": 0}}, "each must be 0 or more, one above 0, and of one of the rewards main"),
        ({"reward_weights": {"main": -1}}, "each must be 0 or more"),
        ({"reward_weights": {"other": 1}}, "of one of the rewards main"),
    ],
)
def test_settings_that_make_no_table_are_refused(
    make_ctx: MakeCtx, held_out: Cells, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluated(make_ctx, held_out, params(**changes))


def test_the_stage_starts_without_a_model_library() -> None:
    code = (
        "import sys, wrpo_engine.evaluation.stage; "
        "print(sorted({'torch', 'transformers', 'vllm', 'sklearn', 'scipy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
