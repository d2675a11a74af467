"""The stage graph: which stages there are, what each needs, and whose hash an edit changes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import merged, raw_spec

from wrpo_engine.config import (
    CurateSftParams,
    FetchParams,
    SampleParams,
    ScoreParams,
    SftParams,
    TrainParams,
)
from wrpo_engine.contract.evaluation import EvaluateParams
from wrpo_operator.api.parsing import parse_spec
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.plan.model import StageNode

SOURCES = ["sample/qwen", "score/qwen", "sample/yi", "score/yi"]
SFT = ["curate-sft", "sft"]
PREFERENCE = ["sample/target", "score/target", "curate-triples", "train"]


def held_out(*models: str) -> list[str]:
    """Return the stages that evaluate models on held-out prompts, and the report."""
    answers, grades = ([f"{kind}/{model}--held-out{end}" for model in models]
                       for kind, end in (("answer", ""), ("grade", "--main")))  # fmt: skip
    return [*answers, *grades, "evaluate", "report"]


TRAINED = held_out("trained")
"""The end that depends on the trained model alone."""
TUNED = held_out("sft", "trained")
END = held_out("target", "sft", "trained")
UNTUNED = held_out("target", "trained")
NO_SFT = {"sft": {"enabled": False}}

STAGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "WRPO runs everything": ({}, ["prepare", *SOURCES, *SFT, *PREFERENCE, *END]),
    "DPO needs the sources for SFT": (
        {"training": {"objective": "DPO"}}, ["prepare", *SOURCES, *SFT, *PREFERENCE, *END]),
    "DPO without SFT samples no source": (
        {"training": {"objective": "DPO"}, **NO_SFT}, ["prepare", *PREFERENCE, *UNTUNED]),
    "WRPO without SFT samples the target itself": (NO_SFT, ["prepare", *SOURCES, *PREFERENCE, *UNTUNED]),
    "SFTOnly ends after SFT": (
        {"training": {"objective": "SFTOnly"}}, ["prepare", *SOURCES, *SFT, *held_out("target", "sft")]),
    "no evaluation, no report": (
        {"evaluation": {"enabled": False}, "report": {"enabled": False}}, ["prepare", *SOURCES, *SFT, *PREFERENCE]),
}  # fmt: skip


def graph_of(**changes: Any) -> dict[str, StageNode]:
    return {str(node.id): node for node in build_graph(parse_spec(raw_spec(**changes)))}


def inputs_of(stage: str, **changes: Any) -> dict[str, str]:
    return {role: str(upstream) for role, upstream in graph_of(**changes)[stage].inputs.items()}


@pytest.mark.parametrize(("changes", "stages"), STAGES.values(), ids=STAGES.keys())
def test_stages(changes: dict[str, Any], stages: list[str]) -> None:
    assert list(graph_of(**changes)) == stages


INPUTS: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "sources read the prompts": ("sample/qwen", {}, {"prompts": "prepare"}),
    "the target is sampled from the SFT model": ("sample/target", {}, {"prompts": "prepare", "sft": "sft"}),
    "without SFT the target needs prompts alone": ("sample/target", NO_SFT, {"prompts": "prepare"}),
    "scores are made of one source's samples": (
        "score/yi", {}, {"prompts": "prepare", "samples/yi": "sample/yi"}),
    "SFT rows come from all sources": (
        "curate-sft", {},
        {"prompts": "prepare", "samples/qwen": "sample/qwen", "samples/yi": "sample/yi",
         "scores/qwen": "score/qwen", "scores/yi": "score/yi"}),
    "SFT reads its rows": ("sft", {}, {"sft-rows": "curate-sft"}),
    "triples need all samples and scores": (
        "curate-triples", {},
        {"prompts": "prepare", "samples/qwen": "sample/qwen", "samples/yi": "sample/yi",
         "scores/qwen": "score/qwen", "scores/yi": "score/yi",
         "samples/target": "sample/target", "scores/target": "score/target"}),
    "pairs need the target's alone": (
        "curate-triples", {"training": {"objective": "IPO"}},
        {"prompts": "prepare", "samples/target": "sample/target", "scores/target": "score/target"}),
    "training starts from the SFT model": ("train", {}, {"triples": "curate-triples", "sft": "sft"}),
    "training starts from the target": ("train", NO_SFT, {"triples": "curate-triples"}),
    "evaluation compares what was made": (
        "evaluate", NO_SFT,
        {"prompts": "prepare", "triples": "curate-triples",
         **{f"answers/{name}--held-out": f"answer/{name}--held-out" for name in ("target", "trained")},
         **{f"grades/{name}--held-out--main": f"grade/{name}--held-out--main" for name in ("target", "trained")}}),
    "the trained model answers": ("answer/trained--held-out", {}, {"prompts": "prepare", "model": "train"}),
    "the SFT model answers": ("answer/sft--held-out", {}, {"prompts": "prepare", "sft": "sft"}),
    "answers are scored": (
        "grade/sft--held-out--main", {},
        {"prompts": "prepare", "answers/sft--held-out": "answer/sft--held-out"}),
    "evaluation after SFT alone": (
        "evaluate", {"training": {"objective": "SFTOnly"}},
        {"prompts": "prepare",
         **{f"answers/{name}--held-out": f"answer/{name}--held-out" for name in ("target", "sft")},
         **{f"grades/{name}--held-out--main": f"grade/{name}--held-out--main" for name in ("target", "sft")}}),
}  # fmt: skip


@pytest.mark.parametrize(("stage", "changes", "inputs"), INPUTS.values(), ids=INPUTS.keys())
def test_inputs(stage: str, changes: dict[str, Any], inputs: dict[str, str]) -> None:
    assert inputs_of(stage, **changes) == inputs


def test_the_report_reads_everything() -> None:
    graph = graph_of()
    cells = {stage for stage in graph if stage.startswith(("answer/", "grade/"))}
    assert {str(upstream) for upstream in graph["report"].inputs.values()} == set(graph) - {"report"} - cells


RERUNS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "the learning rate": ({"training": {"learningRate": 1e-6}}, ["train", *TRAINED]),
    "alpha": ({"training": {"alpha": {"max": 0.3}}}, ["train", *TRAINED]),
    "the SFT learning rate": ({"sft": {"learningRate": 1e-5}}, ["sft", *PREFERENCE, *TUNED]),
    "the objective": ({"training": {"objective": "DPO"}}, ["curate-triples", "train", *TRAINED]),
    "the margin": ({"curation": {"scoreMargin": 0.01}}, ["curate-triples", "train", *TRAINED]),
    "one source's temperature": (
        {"sources": [{"name": "qwen", "model": "Qwen/Qwen2-72B-Instruct", "sampling": {"temperature": 1}},
                     {"name": "yi", "model": "01-ai/Yi-1.5-34B-Chat"}]},
        ["sample/qwen", "score/qwen", *SFT, *PREFERENCE, *TUNED]),
    "the reward model": (
        {"reward": {"model": "org/other"}},
        ["score/qwen", "score/yi", *SFT, *PREFERENCE, *(stage for stage in END if stage != "answer/target--held-out")]),
    "the prompts' seed": ({"prompts": {"seed": 1}}, ["prepare", *SOURCES, *SFT, *PREFERENCE, *END]),
    "evaluation": ({"evaluation": {"temperature": 0.5}}, END),
    "the report": ({"report": {"sampleAnswers": 9}}, ["report"]),
    "the salt": ({"reuse": {"salt": "1"}}, ["prepare", *SOURCES, *SFT, *PREFERENCE, *END]),
    "shards": ({"sampling": {"shards": 8}, "reward": {"shards": 2}}, []),
    "nodes and GPUs": ({"training": {"nodes": 4, "gpusPerNode": 8, "microBatchTokens": 1, "offload": "optimizer"}}, []),
    "what decides speed and memory of sampling and scoring": (
        {"sampling": {"engineArgs": {"max_num_seqs": 64, "enforce_eager": True}},
         "reward": {"batchTokens": 4096, "concurrency": 64}}, []),
    "what changes the sources' answers": (
        {"sampling": {"engineArgs": {"max_num_seqs": 64, "kv_cache_dtype": "fp8"}}},
        [*SOURCES, *SFT, *PREFERENCE, *TUNED]),
    "checkpoints": ({"training": {"checkpointEverySteps": 5}}, []),
    "resources, queue, images, retries, environment": (
        {"resources": {"train": {"limits": {"cpu": 1}}}, "scheduling": {"queueName": "q"}, "images": {"trainer": "a/b"},
         "retries": {"limit": 9}, "env": [{"name": "A", "value": "b"}], "podTemplate": {"metadata": {}},
         "ttlSecondsAfterFinished": 1, "ttlSecondsAfterFailed": 1, "deadlines": {"activeSeconds": 5}}, []),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "stages"), RERUNS.values(), ids=RERUNS.keys())
def test_an_edit_re_runs_only_what_depends_on_it(changes: dict[str, Any], stages: list[str]) -> None:
    before, after = graph_of(), graph_of(**changes)
    assert [stage for stage, node in after.items() if node.hash != before[stage].hash] == stages


def test_a_further_source_samples_and_scores_that_source_alone() -> None:
    sources = [*raw_spec()["sources"], {"name": "phi", "model": "microsoft/phi"}]
    before, after = graph_of(), graph_of(sources=sources)
    changed = [stage for stage, node in after.items() if stage not in before or node.hash != before[stage].hash]
    assert changed == ["sample/phi", "score/phi", *SFT, *PREFERENCE, *TUNED]


def test_the_order_of_sources_does_not_matter_to_what_is_computed() -> None:
    reordered = graph_of(sources=list(reversed(raw_spec()["sources"])))
    hashes = {stage: node.hash for stage, node in graph_of().items() if stage != "report"}
    assert {stage: node.hash for stage, node in reordered.items() if stage != "report"} == hashes


PARTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "both parts for WRPO": ({}, ("sft", "preference")),
    "both for DPO, to be shared": ({"training": {"objective": "DPO"}}, ("sft", "preference")),
    "what DPO needs": ({"training": {"objective": "DPO"}, "sampling": {"sourcePrompts": "Needed"}}, ("sft",)),
    "what WRPO without SFT needs": ({**NO_SFT, "sampling": {"sourcePrompts": "Needed"}}, ("preference",)),
    "no SFT prompts": ({**NO_SFT, "prompts": {"sftFraction": 0}}, ("preference",)),
    "no preference prompts": ({"training": {"objective": "SFTOnly"}, "prompts": {"sftFraction": 1}}, ("sft",)),
}


@pytest.mark.parametrize(("changes", "parts"), PARTS.values(), ids=PARTS.keys())
def test_prompts_that_sources_answer(changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    params = graph_of(**changes)["sample/qwen"].params
    assert isinstance(params, SampleParams)
    assert params.parts == parts


def test_a_source_overrides_the_common_sampling() -> None:
    changes = {"temperature": 0.1, "onPromptTooLong": "Skip", "tensorParallelSize": 4}
    sources = [{"name": "a", "model": "org/a", "sampling": changes, "shards": 3, "chatTemplate": "{{ messages }}"}]
    node = graph_of(sources=sources, sampling={"topP": 0.5, "shards": 2})["sample/a"]
    assert isinstance(node.params, SampleParams)
    assert (node.params.temperature, node.params.top_p, node.params.on_prompt_too_long) == (0.1, 0.5, "Skip")
    assert node.params.model.chat_template == "{{ messages }}"
    assert (node.runtime.shards, node.runtime.tensor_parallel_size) == (3, 4)


def test_sft_takes_training_values_it_does_not_set() -> None:
    graph = graph_of(training={"precision": "float32", "zeroStage": 1, "microBatchTokens": 7}, sft={"zeroStage": 2})
    params = graph["sft"].params
    assert isinstance(params, SftParams)
    assert (params.precision, params.zero_stage, params.learning_rate) == ("float32", 2, 7e-6)
    assert graph["sft"].runtime.micro_batch_tokens == 7


def test_the_paper_s_values_are_the_defaults() -> None:
    graph = graph_of()
    train, score, sample = graph["train"].params, graph["score/yi"].params, graph["sample/yi"].params
    assert isinstance(train, TrainParams)
    assert isinstance(score, ScoreParams)
    assert isinstance(sample, SampleParams)
    assert (train.learning_rate, train.beta, train.alpha.max, train.alpha.schedule) == (3e-7, 0.01, 0.1, "Linear")
    assert (train.global_batch_size, train.max_length, train.max_prompt_length) == (128, 2048, 1800)
    assert (sample.samples_per_prompt, sample.temperature, sample.top_p) == (5, 0.8, 0.95)


def test_models_under_evaluation_are_named_by_what_they_are() -> None:
    params = graph_of()["evaluate"].params
    assert isinstance(params, EvaluateParams)
    assert [(system.name, system.label, system.uses_reward) for system in params.systems] == [
        ("target", "target", False), ("sft", "sft", True), ("trained", "WRPO-DPO", True)]  # fmt: skip
    assert (params.subject, params.opponents) == ("trained", ("target", "sft"))


DOWNSTREAM = st.fixed_dictionaries(
    {},
    optional={
        "training": st.sampled_from([{"beta": 0.5}, {"objective": "IPO"}, {"learningRate": 1e-5}]),
        "curation": st.just({"scoreMargin": 0.5}),
        "evaluation": st.just({"maxTokens": 7}),
    },
)


@given(DOWNSTREAM, DOWNSTREAM)
def test_experiments_that_differ_downstream_share_everything_before(first: Any, second: Any) -> None:
    upstream = ["prepare", *SOURCES, *SFT, "sample/target", "score/target"]
    one, other = graph_of(**first), graph_of(**second)
    assert [one[stage].hash for stage in upstream] == [other[stage].hash for stage in upstream]


@given(DOWNSTREAM, st.sampled_from([{}, NO_SFT, {"training": {"objective": "SimPO"}, **NO_SFT}]))
def test_inputs_come_before_the_stages_that_read_them(changes: Any, more: Any) -> None:
    seen: set[Any] = set()
    for node in build_graph(parse_spec(merged(raw_spec(**changes), more))):
        assert seen.issuperset(node.inputs.values())
        seen.add(node.id)


TWO_REWARDS = {"reward": {"weight": 2, "additional": [{"name": "length", "function": "rewards:length"}]}}


def test_a_further_reward_scores_in_stages_of_its_own_and_leaves_the_first_ones_scores() -> None:
    one, two = graph_of(), graph_of(**TWO_REWARDS)
    graded = {f"grade/{model}--held-out--length" for model in ("target", "sft", "trained")}
    assert set(two) - set(one) == {"score/qwen--length", "score/yi--length", "score/target--length"} | graded
    assert two["score/qwen"].hash == one["score/qwen"].hash
    sections = {name: two[name].runtime.model_sections["reward"] for name in ("score/qwen", "score/qwen--length")}
    assert sections == {"score/qwen": "reward", "score/qwen--length": "reward.additional[length]"}
    params = two["score/qwen--length"].params
    assert isinstance(params, ScoreParams)
    assert params.reward.function == "rewards:length"
    roles = inputs_of("curate-sft", **TWO_REWARDS)
    assert {role: stage for role, stage in roles.items() if role.startswith("scores/qwen")} == {
        "scores/qwen/main": "score/qwen",
        "scores/qwen/length": "score/qwen--length",
    }
    curation = two["curate-sft"].params
    assert isinstance(curation, CurateSftParams)
    assert curation.reward_weights == {"main": 2.0, "length": 1.0}


def test_changing_a_weight_scores_nothing_anew() -> None:
    other = merged(TWO_REWARDS, {"reward": {"weight": 3}})
    before, after = graph_of(**TWO_REWARDS), graph_of(**other)
    changed = {stage for stage in before if before[stage].hash != after[stage].hash}
    assert not any(stage.startswith(("sample/qwen", "score/qwen")) for stage in changed)
    assert "curate-sft" in changed


def test_the_model_cache_downloads_each_hub_model_once_and_changes_no_hash() -> None:
    changes: dict[str, Any] = {"modelCache": {"enabled": True}, "target": {"model": "Qwen/Qwen2-72B-Instruct"}}
    with_cache, without = graph_of(**changes), graph_of(target=changes["target"])
    fetched = {stage: node for stage, node in with_cache.items() if stage.startswith("fetch/")}
    assert sorted(str(node.params.model.name) for node in fetched.values() if isinstance(node.params, FetchParams)) == [
        "01-ai/Yi-1.5-34B-Chat",
        "Qwen/Qwen2-72B-Instruct",
        "RLHFlow/ArmoRM-Llama3-8B-v0.1",
    ]
    assert {stage: with_cache[stage].hash for stage in without} == {stage: node.hash for stage, node in without.items()}
    readers = ("sample/qwen", "sample/yi", "score/qwen", "score/target", "sft", "answer/target--held-out")
    for stage in (*readers, "grade/sft--held-out--main"):
        assert any(str(upstream) in fetched for upstream in with_cache[stage].inputs.values()), stage
    assert not any(str(upstream) in fetched for upstream in with_cache["train"].inputs.values())


def test_models_on_paths_are_not_downloaded() -> None:
    changes: dict[str, Any] = {
        "modelCache": {"enabled": True},
        "target": {"model": "/models/a"},
        "reward": {"model": "storage://rm"},
        "sources": [{"name": "a", "model": "/models/b"}],
    }
    assert not any(stage.startswith("fetch/") for stage in graph_of(**changes))


def test_pairs_of_sources_need_the_sources_whatever_the_objective() -> None:
    changes: dict[str, Any] = {"training": {"objective": "DPO"}, "curation": {"pairing": "WithinSource"}, **NO_SFT}
    assert "samples/qwen" in inputs_of("curate-triples", **changes)
    params = graph_of(**changes)["sample/qwen"].params
    assert isinstance(params, SampleParams)
    assert "preference" in params.parts


def test_a_left_out_source_keeps_its_stages_but_nothing_uses_them() -> None:
    spec = parse_spec(raw_spec())
    graph = {str(node.id): node for node in build_graph(spec, frozenset({"yi"}))}
    assert {"sample/yi", "score/yi"} <= set(graph)
    users = {str(node.id) for node in graph.values() for upstream in node.inputs.values() if upstream.name == "yi"}
    assert users == {"score/yi"}
    assert graph["curate-sft"].hash != graph_of()["curate-sft"].hash
    assert graph["sample/qwen"].hash == graph_of()["sample/qwen"].hash


def test_parameters_at_their_defaults_are_not_hashed() -> None:
    # An option that a new version adds must not re-run what an older version computed.
    explicit = graph_of(training={"shuffle": True, "beta": 0.01}, sampling={"stop": []})
    assert {stage: node.hash for stage, node in explicit.items()} == {
        stage: node.hash for stage, node in graph_of().items()
    }
