"""Systems x benchmarks x judges: which cells there are, what they share, and that any valid evaluation is a graph."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builders import AUTOMATIC, make_pod, merged, raw_spec
from support.model_cluster import ModelCluster

from wrpo_engine.config import ErrorInfo
from wrpo_engine.contract.evaluation import (
    AnswerParams,
    EvaluateParams,
    GradeParams,
    JudgeParams,
    MixtureParams,
    PerplexityParams,
    SelectParams,
)
from wrpo_engine.contract.merging import JointParams, MergeParams
from wrpo_operator.api.names import stage_label
from wrpo_operator.api.parsing import parse_spec
from wrpo_operator.plan.graph import build_graph, graph_errors
from wrpo_operator.plan.model import StageNode

BENCHMARKS: list[dict[str, Any]] = [
    {"name": "alpaca", "kind": "AlpacaEval2", "preset": "FuseEval"},
    {"name": "arena", "kind": "ArenaHard", "baseline": "moa"},
    {"name": "mt", "kind": "MTBench"},
    {"name": "own", "kind": "Custom", "bundle": "org/own"},
]
JUDGES: list[dict[str, Any]] = [
    {"name": "gpt", "endpoint": "https://judges.example.org/v1", "model": "gpt"},
    {"name": "own", "serve": {"model": "org/judge"}, "benchmarks": ["arena", "mt"]},
    {"name": "self", "serveReward": "main"},
    {"name": "length", "reward": {"function": "a:b"}},
]
PACK: dict[str, Any] = {"name": "pack", "select": {"by": "Perplexity", "members": ["*", "target"]}}
SYSTEMS: list[dict[str, Any]] = [
    {"name": "moa", "mixture": {"proposers": ["*"], "aggregator": "big", "rounds": 2}},
    {"name": "large", "source": "qwen"},
    {"name": "big", "model": {"model": "org/big"}},
    PACK,
    {"name": "pack-chat", "select": {"by": "Perplexity", "members": ["*", "target"], "text": "Chat"}},
    {"name": "blender", "select": {"by": "PairRM", "members": ["*", "big"], "ranker": {"model": "org/rm"}}},
    {"name": "best", "select": {"by": "Reward", "members": ["sft", "trained"]}},
    {"name": "floor", "select": {"by": "Random", "members": ["*"]}},
    {"name": "fusellm", "fuse": {"sources": ["*"], "strategy": "AvgCE"}},
    {"name": "with-fused", "select": {"by": "Perplexity", "members": ["fusellm", "sft"]}},
    {"name": "ties", "merge": {"method": "TIES", "models": ["*", "sft"], "density": 0.2}},
    {"name": "soup", "merge": {"method": "SLERP", "models": ["qwen", "yi"]}},
    {"name": "with-merged", "select": {"by": "Perplexity", "members": ["ties", "soup", "sft"]}},
    {"name": "eva", "joint": {"method": "EVA", "members": ["*", "sft", "target"]}},
]
REQUIRED = [system for system in SYSTEMS if system["name"] in {"big", "fusellm", "ties", "soup"}]
"""Models that are members of other systems."""
ALPACA, GPT = BENCHMARKS[:1], JUDGES[:1]


def graph_of(without: frozenset[str] = frozenset(), **lists: Any) -> dict[str, StageNode]:
    nodes = build_graph(parse_spec(raw_spec(evaluation=lists)), without)
    assert len({node.id for node in nodes}) == len(nodes)
    return {str(node.id): node for node in nodes}


def names(graph: dict[str, StageNode], kind: str) -> list[str]:
    return [node.id.name for node in graph.values() if node.id.kind == kind]


def changed(before: dict[str, StageNode], after: dict[str, StageNode]) -> set[str]:
    """Return the stages that are new or have another hash."""
    return {name for name, node in after.items() if name not in before or before[name].hash != node.hash}


EVERYTHING: dict[str, Any] = {"benchmarks": BENCHMARKS, "judges": JUDGES, "systems": SYSTEMS}
FEW = st.builds(
    lambda benchmarks, judges, systems, held: {"benchmarks": benchmarks, "judges": judges, "systems": systems} | held,
    st.lists(st.sampled_from([BENCHMARKS[0], BENCHMARKS[2], BENCHMARKS[3]]), unique_by=lambda item: item["name"]),
    st.lists(st.sampled_from([JUDGES[0], JUDGES[2], JUDGES[3]]), unique_by=lambda item: item["name"]).map(
        lambda found: [*found, *(judge for judge in (JUDGES[0], JUDGES[3]) if judge not in found)]
    ),
    st.lists(st.sampled_from(SYSTEMS[2:]), unique_by=lambda item: item["name"]).map(
        lambda found: [*found, *(system for system in REQUIRED if system not in found)]
    ),
    st.sampled_from([{}, {"shards": 4}]),
)


@settings(max_examples=40)
@given(FEW, st.sampled_from([{}, AUTOMATIC, {"modelCache": {"enabled": True}}]))
def test_any_evaluation_is_a_graph_whose_stages_have_names_that_are_labels(lists: Any, more: Any) -> None:
    nodes = build_graph(parse_spec(merged(raw_spec(evaluation=lists), more)))
    assert max(Counter(node.id for node in nodes).values()) == 1
    assert max(len(stage_label(str(node.id))) for node in nodes) <= 63
    seen: set[Any] = set()
    for node in nodes:
        assert seen.issuperset(node.upstream)
        seen.add(node.id)
    read = {upstream for node in nodes for upstream in node.upstream}
    assert {node.id for node in nodes} - read <= {nodes[-1].id}, "each cell is read by another stage"


@settings(max_examples=25)
@given(FEW)
def test_a_further_system_adds_only_its_own_cells(lists: Any) -> None:
    further = {"name": "last", "select": {"by": "Random", "members": ["*"]}}
    before = graph_of(**lists)
    after = graph_of(**{**lists, "systems": [*lists["systems"], further]})
    own = {name for name in changed(before, after) if name not in {"evaluate", "report"}}
    assert {name.partition("/")[2].partition("--")[0] for name in own} <= {"last", "qwen", "yi"}
    assert before.keys() <= after.keys()


@settings(max_examples=25)
@given(FEW)
def test_a_second_judge_re_uses_all_answers(lists: Any) -> None:
    second = {"name": "second", "endpoint": "https://other.example.org/v1", "model": "other"}
    before = graph_of(**lists)
    after = graph_of(**{**lists, "judges": [*lists["judges"], second]})
    own = {name for name in changed(before, after) if name not in {"evaluate", "report"}}
    assert all(name.startswith("judge/") and name.endswith("--second") for name in own)


def test_equal_cells_of_two_experiments_have_equal_addresses() -> None:
    one, other = graph_of(**EVERYTHING), graph_of(benchmarks=ALPACA, judges=GPT, systems=[SYSTEMS[3]])
    shared = (one.keys() & other.keys()) - {"evaluate", "report"}
    assert {"select/pack--alpaca", "perplexity/qwen--alpaca", "judge/pack--alpaca--gpt"} <= shared
    assert {name: one[name].hash for name in shared} == {name: other[name].hash for name in shared}


def test_one_set_of_the_sources_answers_serves_rows_selections_and_mixtures() -> None:
    graph = graph_of(benchmarks=ALPACA, judges=GPT, systems=SYSTEMS)
    assert sorted(name for name in names(graph, "answer") if name.endswith("--alpaca")) == [
        f"{model}--alpaca" for model in ("big", "fusellm", "qwen", "sft", "soup", "target", "ties", "trained", "yi")
    ]
    readers = {name for name, node in graph.items() if "answers/qwen--alpaca" in node.inputs}
    assert readers == {
        "select/pack--alpaca", "select/pack-chat--alpaca", "select/blender--alpaca", "select/floor--alpaca",
        "rank/blender--alpaca", "mixture/moa--alpaca--l2-qwen", "mixture/moa--alpaca--l2-yi", "judge/qwen--alpaca--gpt",
        "evaluate",
    }  # fmt: skip


def test_a_mixture_has_its_layers_and_the_aggregator_last() -> None:
    systems = [{"name": "moa", "mixture": {"proposers": ["*"], "aggregator": "target", "rounds": 3, "temperature": 1}}]
    graph = graph_of(systems=systems)
    assert names(graph, "mixture") == [
        *(f"moa--held-out--l{layer}-{name}" for layer in (2, 3) for name in ("qwen", "yi")), "moa--held-out",
    ]  # fmt: skip
    last = graph["mixture/moa--held-out"].params
    assert isinstance(last, MixtureParams)
    assert last.references == ("mixture/moa--held-out--l3-qwen", "mixture/moa--held-out--l3-yi")
    assert (last.model.name, last.temperature, last.max_tokens, last.reference_tokens) == (
        "org/target",
        1.0,
        2048,
        1024,
    )
    assert not last.uses_item_temperature
    first = graph["mixture/moa--held-out--l2-yi"].params
    assert isinstance(first, MixtureParams)
    assert first.references == ("answers/qwen--held-out", "answers/yi--held-out")


def test_a_merge_reads_its_base_and_models_and_answers_as_a_model() -> None:
    graph = graph_of(systems=[
        SYSTEMS[8],
        {"name": "ties", "merge": {"method": "TIES", "models": ["fusellm", "*", "trained"], "weights": [1, 2, 3, 4],
                                   "density": 0.5, "lambda": 0.3}},
    ])  # fmt: skip
    node = graph["merge/ties"]
    assert isinstance(node.params, MergeParams)
    assert node.params.base is not None
    assert node.params.base.name == "org/target"
    assert [model.name or model.input for model in node.params.models] == [
        "fused/fusellm", "Qwen/Qwen2-72B-Instruct", "01-ai/Yi-1.5-34B-Chat", "model",
    ]  # fmt: skip
    assert node.params.weight == (1.0, 2.0, 3.0, 4.0)
    assert (node.params.density, node.params.scale) == (0.5, 0.3)
    assert list(node.inputs) == ["fused/fusellm", "model"]
    assert node.needs == ()
    answer = graph["answer/ties--held-out"]
    assert isinstance(answer.params, AnswerParams)
    assert answer.params.model.input == "merge/ties"
    assert list(answer.inputs) == ["prompts", "merge/ties"]


@pytest.mark.parametrize(
    ("merge", "base", "template"),
    [
        ({"method": "SLERP", "models": ["qwen", "yi"]}, None, "qwen"),
        ({"method": "Linear", "models": ["yi", "qwen"]}, None, "yi"),
        ({"method": "Linear", "models": ["yi", "qwen"], "base": "qwen"}, "org/qwen", "qwen"),
        ({"method": "TIES", "models": ["yi", "sft"], "base": "big"}, "org/big", "big"),
        ({"method": "SCE", "models": ["yi"]}, "org/target", "target"),
        ({"method": "SCE", "models": ["yi"], "base": "sft"}, None, "target"),
    ],
)
def test_a_merged_model_has_the_template_of_its_base_or_of_the_first_model(
    merge: dict[str, Any], base: str | None, template: str
) -> None:
    big = {"name": "big", "model": {"model": "org/big", "chatTemplate": "big"}}
    sources = [{"name": name, "model": f"org/{name}", "chatTemplate": name} for name in ("qwen", "yi")]
    systems = [big, {"name": "m", "merge": merge}]
    spec = raw_spec(
        target={"model": "org/target", "chatTemplate": "target"}, sources=sources, evaluation={"systems": systems}
    )
    graph = {str(node.id): node for node in build_graph(parse_spec(spec))}
    params = graph["merge/m"].params
    assert isinstance(params, MergeParams)
    assert (params.base.name if params.base is not None else None) == base
    answer = graph["answer/m--held-out"].params
    assert isinstance(answer, AnswerParams)
    assert answer.model.chat_template == template


def test_a_failed_source_leaves_a_merge_with_its_weight_and_a_merge_without_enough_models_leaves_the_rows() -> None:
    systems = [
        {"name": "left", "merge": {"method": "TIES", "models": ["sft", "*"], "weights": [1, 2, 3]}},
        {"name": "soup", "merge": {"method": "SLERP", "models": ["qwen", "yi"]}},
        {"name": "based", "merge": {"method": "TIES", "models": ["sft"], "base": "qwen"}},
        {"name": "eva", "joint": {"method": "EVA", "members": ["*", "soup"]}},
        {"name": "pair", "joint": {"method": "PackSim", "members": ["soup", "sft", "*"]}},
    ]
    graph = graph_of(frozenset({"qwen"}), systems=systems)
    params = graph["merge/left"].params
    assert isinstance(params, MergeParams)
    assert [model.name or model.input for model in params.models] == ["sft", "01-ai/Yi-1.5-34B-Chat"]
    assert params.weight == (1.0, 3.0)
    assert names(graph, "merge") == ["left"]
    joint = graph["joint/pair--held-out"].params
    assert isinstance(joint, JointParams)
    assert joint.names == ("sft", "yi")
    assert names(graph, "joint") == ["pair--held-out"]
    evaluate = graph["evaluate"].params
    assert isinstance(evaluate, EvaluateParams)
    assert [row.name for row in evaluate.systems] == ["target", "sft", "trained", "left", "pair"]


def test_models_that_choose_each_token_together_answer_each_benchmark_in_one_stage() -> None:
    eva = {"method": "EVA", "members": ["yi", "sft", "ties"], "topK": 7, "agreement": 3}
    graph = graph_of(
        benchmarks=ALPACA,
        judges=GPT,
        systems=[SYSTEMS[10], {"name": "eva", "joint": eva}],
        maxTokens=77,
        systemPrompt="Be brief.",
        shards=3,
    )
    assert names(graph, "joint") == ["eva--held-out", "eva--alpaca"]
    node = graph["joint/eva--held-out"]
    assert isinstance(node.params, JointParams)
    assert [model.name or model.input for model in node.params.members] == [
        "01-ai/Yi-1.5-34B-Chat",
        "sft",
        "merge/ties",
    ]
    assert (node.params.names, node.params.max_tokens, node.params.system_prompt) == (
        ("yi", "sft", "ties"), 77, "Be brief."
    )  # fmt: skip
    assert (node.params.top_k, node.params.agreement, node.params.temperature) == (7, 3, 1.0)
    assert node.runtime.shards == 3
    assert list(node.inputs) == ["prompts", "sft", "merge/ties"]
    assert "answer/yi--held-out" not in graph, "a joint answer needs no member's own answers"
    assert "joint/eva--alpaca" in graph["judge/eva--alpaca--gpt"].inputs
    evaluate = graph["evaluate"].params
    assert isinstance(evaluate, EvaluateParams)
    rows = {row.name: row for row in evaluate.systems}
    assert (rows["eva"].form, rows["eva"].answers, rows["eva"].uses_reward) == ("Joint", "joint", True)
    assert rows["eva"].choices == {"members": "yi, sft, ties", "method": "EVA", "agreement": "3", "top_k": "7"}
    assert (rows["ties"].form, rows["ties"].answers, rows["ties"].uses_reward) == ("Merge", "answers", True)
    assert rows["ties"].choices == {
        "base": "target", "models": "qwen, yi, sft", "method": "TIES", "density": "0.2"
    }  # fmt: skip


def test_a_merge_of_models_that_exist_is_not_marked_as_trained() -> None:
    graph = graph_of(systems=[{"name": "soup", "merge": {"method": "SLERP", "models": ["qwen", "yi"]}}])
    evaluate = graph["evaluate"].params
    assert isinstance(evaluate, EvaluateParams)
    assert {row.name: row.uses_reward for row in evaluate.systems}["soup"] is False
    assert dict(graph["merge/soup"].inputs) == {}


SELECTIONS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "perplexities": ({"by": "Perplexity"}, ("perplexity/yi--held-out", "perplexity/qwen--held-out")),
    "perplexities in the template": (
        {"by": "Perplexity", "text": "Chat"}, ("perplexity/yi--held-out--chat", "perplexity/qwen--held-out--chat")),
    "ranks": ({"by": "PairRM", "ranker": {"model": "a/b"}}, ("rank/s--held-out",)),
    "scores": ({"by": "Reward"}, ("grades/yi--held-out--main", "grades/qwen--held-out--main")),
    "nothing": ({"by": "Random"}, ()),
}  # fmt: skip


@pytest.mark.parametrize(("select", "criteria"), SELECTIONS.values(), ids=SELECTIONS.keys())
def test_a_selection_reads_members_and_criteria_in_its_order(select: dict[str, Any], criteria: tuple[str, ...]) -> None:
    graph = graph_of(systems=[{"name": "s", "select": {**select, "members": ["yi", "qwen"]}}])
    node = graph["select/s--held-out"]
    assert isinstance(node.params, SelectParams)
    assert node.params.members == ("answers/yi--held-out", "answers/qwen--held-out")
    assert node.params.criteria == criteria
    assert list(node.inputs) == ["prompts", *node.params.members, *criteria]


def test_a_selection_by_perplexity_measures_each_text_once() -> None:
    graph = graph_of(systems=[SYSTEMS[3], SYSTEMS[4], {**SYSTEMS[3], "name": "again"}])
    members = [f"{name}--held-out" for name in ("qwen", "yi", "target")]
    assert names(graph, "perplexity") == [*members, *(f"{name}--chat" for name in members)]
    texts = {node.params.text for node in graph.values() if isinstance(node.params, PerplexityParams)}
    assert texts == {"Plain", "Chat"}


DECODING: dict[str, tuple[dict[str, Any], tuple[float, float, int, float, bool]]] = {
    "the settings of the evaluation": ({"kind": "AlpacaEval2"}, (0.25, 1.0, 99, 0.0, False)),
    "a preset": ({"kind": "AlpacaEval2", "preset": "FuseEval"}, (0.6, 0.9, 4096, 0.1, False)),
    "SimPO": ({"kind": "AlpacaEval2", "preset": "SimPO"}, (0.9, 1.0, 99, 0.0, False)),
    "a preset and a setting": (
        {"kind": "ArenaHard", "preset": "Official", "sampling": {"maxTokens": 7, "presencePenalty": 1}},
        (0.0, 1.0, 7, 1.0, False)),
    "temperatures of categories": ({"kind": "MTBench", "preset": "Official"}, (0.25, 1.0, 1024, 0.0, True)),
    "one temperature for all categories": (
        {"kind": "MTBench", "sampling": {"temperature": 0}}, (0.0, 1.0, 99, 0.0, False)),
    "own prompts in the manner of MT-Bench": (
        {"kind": "Custom", "bundle": "a/b", "protocol": "MTBench"}, (0.25, 1.0, 99, 0.0, True)),
}  # fmt: skip


@pytest.mark.parametrize(("benchmark", "expected"), DECODING.values(), ids=DECODING.keys())
def test_settings_of_a_benchmark_precede_its_preset_and_that_the_evaluation(
    benchmark: dict[str, Any], expected: tuple[float, float, int, float, bool]
) -> None:
    graph = graph_of(
        benchmarks=[{"name": "b", **benchmark}], judges=GPT, temperature=0.25, maxTokens=99, samplesPerPrompt=3
    )
    params = graph["answer/target--b"].params
    assert isinstance(params, AnswerParams)
    found = (params.temperature, params.top_p, params.max_tokens, params.presence_penalty, params.uses_item_temperature)
    assert found == expected
    held_out = graph["answer/target--held-out"].params
    assert isinstance(held_out, AnswerParams)
    assert (held_out.temperature, held_out.max_tokens, held_out.uses_item_temperature) == (0.25, 99, False)
    assert (held_out.samples_per_prompt, params.samples_per_prompt) == (3, 1)


def test_a_benchmark_may_have_several_samples() -> None:
    graph = graph_of(benchmarks=[{"name": "b", "kind": "MTBench", "sampling": {"samplesPerPrompt": 2}}], judges=GPT)
    params = graph["answer/target--b"].params
    assert isinstance(params, AnswerParams)
    assert params.samples_per_prompt == 2


def test_a_source_answers_with_the_engine_it_is_sampled_with() -> None:
    source = {"name": "qwen", "model": "org/a", "chatTemplate": "{{ messages }}",
              "sampling": {"backend": "Transformers", "dtype": "float32", "tensorParallelSize": 4}}  # fmt: skip
    spec = raw_spec(sources=[source], evaluation={"systems": [SYSTEMS[1]]}, sampling={"engineArgs": {"seed": 1}})
    node = next(node for node in build_graph(parse_spec(spec)) if str(node.id) == "answer/qwen--held-out")
    assert isinstance(node.params, AnswerParams)
    assert (node.params.backend, node.params.dtype) == ("Transformers", "float32")
    assert node.params.model.chat_template == "{{ messages }}"
    assert (node.runtime.tensor_parallel_size, node.runtime.engine_args) == (4, {})


@pytest.mark.parametrize(("backend", "quantization"), [("vLLM", "awq"), ("Transformers", None)])
def test_a_source_answers_with_the_weights_and_ends_it_is_sampled_with(backend: str, quantization: str | None) -> None:
    source = {"name": "qwen", "model": "org/a", "sampling": {"quantization": "awq", "stopTokenIds": [7]}}
    lists = {"backend": backend, "systems": [SYSTEMS[1], PACK]}
    graph = {
        str(node.id): node.params
        for node in build_graph(
            parse_spec(raw_spec(sources=[source], evaluation=lists, sampling={"stop": ["END"], "quantization": "fp8"}))
        )
    }
    own, target = graph["answer/qwen--held-out"], graph["answer/target--held-out"]
    assert isinstance(own, AnswerParams)
    assert isinstance(target, AnswerParams)
    assert (own.quantization, own.stop, own.stop_token_ids) == (quantization, ("END",), (7,))
    assert (target.quantization, target.stop, target.stop_token_ids) == (None, (), ())
    read = graph["perplexity/qwen--held-out"]
    assert isinstance(read, PerplexityParams)
    assert read.quantization == quantization


def test_the_connection_to_a_judge_and_its_limits_are_not_hashed() -> None:
    changes = {"endpoint": "https://elsewhere.example.org/v1", "concurrency": 99, "requestsPerMinute": 5,
               "maxRequests": 9, "maxInvalidShare": 0.5, "reportedModel": "gpt-4o",
               "apiKeySecretRef": {"name": "a", "key": "b"}}  # fmt: skip
    before = graph_of(benchmarks=ALPACA, judges=GPT)
    after = graph_of(benchmarks=ALPACA, judges=[GPT[0] | changes])
    assert changed(before, after) == set()
    runtime = after["judge/sft--alpaca--gpt"].runtime
    assert runtime.judge_endpoint == "https://elsewhere.example.org/v1"
    assert (runtime.judge_concurrency, runtime.judge_requests_per_minute, runtime.judge_max_requests) == (99, 5, 9)
    assert (runtime.judge_max_invalid_share, runtime.judge_reported_model) == (0.5, "gpt-4o")


def test_a_judge_reads_the_answers_and_those_of_the_baseline() -> None:
    graph = graph_of(**EVERYTHING)
    against = (
        graph["judge/large--arena--gpt"] if "judge/large--arena--gpt" in graph else graph["judge/qwen--arena--gpt"]
    )
    assert isinstance(against.params, JudgeParams)
    assert (against.params.answers, against.params.baseline) == ("answers/qwen--arena", "mixture/moa--arena")
    assert set(against.inputs) == {"bench/arena", "answers/qwen--arena", "mixture/moa--arena"}
    served = graph["judge/best--mt--own"].params
    assert isinstance(served, JudgeParams)
    assert served.serve is not None
    assert (served.model, served.serve.name, served.benchmark_protocol) == ("org/judge", "org/judge", "MTBench")
    reward = graph["judge/target--alpaca--self"].params
    assert isinstance(reward, JudgeParams)
    assert reward.serve_reward is not None
    assert reward.model == reward.serve_reward.identity == "RLHFlow/ArmoRM-Llama3-8B-v0.1"


def test_the_engine_of_a_served_judge_is_set_as_that_of_a_source() -> None:
    def stage(**serve: Any) -> StageNode:
        own = {"name": "own", "serve": {"model": "org/judge", **serve}}
        return graph_of(benchmarks=ALPACA, judges=[own])["judge/sft--alpaca--own"]

    usual = stage()
    for_speed = stage(engineArgs={"max_num_seqs": 8}, tensorParallelSize=2, gpuMemoryUtilization=0.5)
    assert for_speed.hash == usual.hash
    assert for_speed.runtime.engine_args == {"max_num_seqs": 8}
    assert (for_speed.runtime.tensor_parallel_size, for_speed.runtime.gpu_memory_utilization) == (2, 0.5)
    other = stage(engineArgs={"kv_cache_dtype": "fp8"}, maxModelLength=4096)
    assert other.hash != usual.hash
    assert isinstance(other.params, JudgeParams)
    assert (other.params.engine_args, other.params.max_model_length) == ({"kv_cache_dtype": "fp8"}, 4096)


def test_a_reward_beside_the_experiment_s_own_scores_the_same_answers() -> None:
    graph = graph_of(judges=[JUDGES[3]])
    assert names(graph, "grade") == [
        f"{model}--held-out--{reward}" for model in ("target", "sft", "trained") for reward in ("main", "length")
    ]
    params = graph["grade/sft--held-out--length"].params
    assert isinstance(params, GradeParams)
    assert (params.reward.function, params.answers) == ("a:b", "answers/sft--held-out")


def test_the_aggregation_says_what_trained_or_selected_each_system() -> None:
    params = graph_of(**EVERYTHING)["evaluate"].params
    assert isinstance(params, EvaluateParams)
    rows = {system.label: system for system in params.systems}
    assert {label for label, row in rows.items() if row.uses_reward} == {
        "sft",
        "WRPO-DPO",
        "best",
        "fusellm",
        "ties",
        "eva",
    }
    assert (rows["large"].name, rows["large"].answers, rows["large"].form) == ("qwen", "answers", "Model")
    assert (rows["moa"].answers, rows["moa"].members) == ("mixture", ("qwen", "yi"))
    assert rows["moa"].choices == {"aggregator": "big", "rounds": "2"}
    assert rows["pack"].choices == {"by": "Perplexity", "text": "Plain", "normalise": "PerToken"}
    assert (rows["fusellm"].form, rows["fusellm"].answers, rows["fusellm"].members) == (
        "Fuse",
        "answers",
        ("qwen", "yi"),
    )
    assert rows["fusellm"].choices == {
        "sources": "qwen, yi",
        "rows": "those of SFT",
        "strategy": "AvgCE",
        "normalise": "PerToken",
        "alignment": "Spans",
        "vocabulary": "MinED",
        "weight": "0.1",
    }
    columns = {column.name: column for column in params.benchmarks}
    assert (columns["held-out"].protocol, columns["held-out"].rewards) == (None, ("main", "length"))
    assert (columns["arena"].judges, columns["arena"].baseline) == (("gpt", "own", "self"), "moa")
    assert (columns["own"].judges, columns["own"].rewards) == ((), ("length",))


def test_the_aggregation_reads_all_cells_that_its_rows_and_columns_have() -> None:
    graph = graph_of(**EVERYTHING)
    params, roles = graph["evaluate"].params, set(graph["evaluate"].inputs)
    assert isinstance(params, EvaluateParams)
    for column in params.benchmarks:
        for row in params.systems:
            cell = f"{row.name}--{column.name}"
            assert {f"{row.answers}/{cell}", *(f"verdicts/{cell}--{judge}" for judge in column.judges),
                    *(f"grades/{cell}--{reward}" for reward in column.rewards)} <= roles  # fmt: skip


def test_a_failed_source_is_a_member_of_nothing() -> None:
    graph = graph_of(frozenset({"qwen"}), **EVERYTHING)
    assert not [name for name in graph if "qwen" in name and not name.startswith(("sample/", "score/"))]
    params = graph["evaluate"].params
    assert isinstance(params, EvaluateParams)
    labels = {system.label: system.members for system in params.systems}
    assert "large" not in labels, "it is the failed source"
    assert "floor" not in labels, "one member is left, which chooses nothing"
    assert (labels["moa"], labels["pack"]) == (("yi",), ("yi", "target"))


def test_a_benchmark_whose_baseline_has_failed_is_left_out() -> None:
    lists: dict[str, Any] = {
        "benchmarks": [{**ALPACA[0], "baseline": "qwen"}, {"name": "mt", "kind": "MTBench"}],
        "judges": GPT,
    }
    assert "answer/qwen--alpaca" in graph_of(**lists)
    graph = graph_of(frozenset({"qwen"}), **lists)
    assert {name.rpartition("--")[2] for name in names(graph, "answer")} == {"held-out", "mt"}


def test_an_experiment_of_more_stages_than_a_status_holds_is_refused_with_their_numbers() -> None:
    systems = [*SYSTEMS[:8], *({"name": f"s{index}", "model": {"model": "org/s"}} for index in range(24))]
    spec = parse_spec(raw_spec(evaluation={**EVERYTHING, "systems": systems}))
    assert graph_errors(parse_spec(raw_spec(evaluation=EVERYTHING))) == ()
    remedy = "Divide spec.evaluation among several experiments, which share equal stages."
    kinds = "280 judge, 218 grade, 150 answer, 30 perplexity"
    assert graph_errors(spec) == (f"spec has 742 stages ({kinds}, ...), more than 512. {remedy}",)


def test_an_experiment_without_evaluation_has_no_cells() -> None:
    graph = graph_of(enabled=False, **EVERYTHING)
    assert not [name for name in graph if "--" in name or name.startswith(("bench/", "evaluate"))]


def test_an_evaluation_with_everything_runs_to_its_end() -> None:
    cluster = ModelCluster()
    cluster.add("demo", evaluation=EVERYTHING)
    assert cluster.run_fairly("demo").value == "Succeeded"
    assert max(cluster.started.values()) == 1


@pytest.mark.parametrize("code", ["JudgeUnreachable", "JudgeQuotaExceeded"])
def test_a_judge_that_does_not_answer_is_a_blocker_until_the_next_attempt(code: str) -> None:
    cluster = ModelCluster()
    cluster.add("demo", training={"objective": "SFTOnly"}, evaluation={"benchmarks": ALPACA, "judges": GPT})
    stage = "judge/target--alpaca--gpt"
    while not any(child.stage == stage for child in cluster.children.values()):
        cluster.reconcile("demo")
        cluster.finish_all("demo")
    name = next(name for name, child in cluster.children.items() if child.stage == stage)
    error = ErrorInfo(code=code, message="https://judges.example.org/v1 does not answer.")
    cluster.fail(name, 75)
    pods = (make_pod(exit_code=75, error=error, finished_at=cluster.children[name].finished_at),)
    cluster.children[name] = replace(cluster.children[name], pods=pods)
    cluster.reconcile("demo")
    (blocker,) = cluster.experiments["demo"].status.blockers
    assert (blocker.object, blocker.reason, blocker.stage) == (f"Stage/{stage}", code, stage)
    assert "https://judges.example.org/v1 does not answer." in blocker.message
    cluster.advance(3600)
    cluster.reconcile("demo")
    assert cluster.experiments["demo"].status.blockers == ()


NEEDS: dict[str, tuple[str, list[str]]] = {
    "an answer": ("answer/big--arena", ["Generation"]),
    "an answer of a fused model": ("answer/fusellm--arena", ["Generation"]),
    "the training of a fused model": ("fuse/fusellm", ["Training"]),
    "a mixture": ("mixture/moa--arena", ["Generation"]),
    "a perplexity": ("perplexity/yi--arena", ["Generation"]),
    "a rank": ("rank/blender--arena", ["Scoring"]),
    "a grade": ("grade/best--held-out--main", ["Scoring"]),
    "a judge that serves a model": ("judge/best--arena--own", ["Generation"]),
    "a judge that serves a reward": ("judge/best--arena--self", ["Scoring"]),
    "a judge by an endpoint": ("judge/best--arena--gpt", []),
    "a function": ("grade/best--held-out--length", []),
    "a choice": ("select/best--arena", []),
}


@pytest.mark.parametrize(("stage", "works"), NEEDS.values(), ids=NEEDS.keys())
def test_the_operator_chooses_accelerators_for_the_models_of_a_cell(stage: str, works: list[str]) -> None:
    spec = parse_spec(merged(raw_spec(evaluation=EVERYTHING), AUTOMATIC))
    node = next(node for node in build_graph(spec) if str(node.id) == stage)
    assert [need.work.value for need in node.needs] == works


def test_each_stage_of_the_evaluation_knows_the_sections_of_its_models() -> None:
    graph = graph_of(**EVERYTHING)
    big, qwen, yi = "evaluation.systems[big].model", "sources[qwen]", "sources[yi]"
    expected = {
        "answer/target--mt": {"model": "target"},
        "answer/trained--mt": {"model": "target"},
        "answer/qwen--mt": {"model": qwen},
        "answer/big--mt": {"model": big},
        "mixture/moa--mt": {"model": big},
        "perplexity/yi--mt": {"model": yi},
        "rank/blender--mt": {"ranker": "evaluation.systems[blender].select.ranker"},
        "score/qwen": {"reward": "reward"},
        "grade/sft--held-out--main": {"reward": "reward"},
        "grade/sft--mt--length": {"reward": "evaluation.judges[length].reward"},
        "judge/sft--mt--gpt": {"model": "evaluation.judges[gpt]"},
        "judge/sft--mt--own": {"model": "evaluation.judges[own]", "serve": "evaluation.judges[own].serve"},
        "judge/sft--mt--self": {"model": "evaluation.judges[self]", "serve_reward": "reward"},
        "merge/soup": {"models[0]": qwen, "models[1]": yi},
        "merge/ties": {"base": "target", "models[0]": qwen, "models[1]": yi, "models[2]": "target"},
        "joint/eva--mt": {f"members[{place}]": name for place, name in enumerate((qwen, yi, "target", "target"))},
    }
    assert {name: graph[name].runtime.model_sections for name in expected} == expected
