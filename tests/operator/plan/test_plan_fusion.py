"""Explicit fusion in the graph: which distributions there are, what is fused, and what trains on it."""

from __future__ import annotations

from typing import Any

import pytest
from support.builders import AUTOMATIC, make_experiment, make_planned, merged, raw_spec

from wrpo_engine.config import FuseParams, SftParams
from wrpo_engine.contract.definition import Image
from wrpo_engine.contract.evaluation import AnswerParams, EvaluateParams
from wrpo_engine.contract.fusing import AlignParams, RepresentParams
from wrpo_engine.contract.merging import MergeParams
from wrpo_engine.contract.stage_config import StageConfig
from wrpo_operator.api.parsing import parse_spec
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.plan.model import StageNode
from wrpo_operator.plan.placing import requests_of
from wrpo_operator.plan.resources import gang_of
from wrpo_operator.plan.warnings import warnings_of
from wrpo_operator.render import RenderSettings, render_attempt
from wrpo_operator.render.common import CONFIG_FILE, config_map


def graph_of(*changes: Any, without: frozenset[str] = frozenset()) -> dict[str, StageNode]:
    raw = raw_spec()
    for change in changes:
        raw = merged(raw, change)
    return {str(node.id): node for node in build_graph(parse_spec(raw), without)}


def fused(**fields: Any) -> dict[str, Any]:
    return {"sft": {"fusion": {"sources": ["*"]} | fields}}


def test_sft_trains_on_the_distributions_of_the_target_and_all_sources() -> None:
    graph = graph_of(fused(weight=0.3, strategy="AvgCE"))
    models = ("represent/target", "represent/qwen", "represent/yi")
    assert [name for name in graph if name.startswith("represent")] == list(models)
    align, sft = graph["align/all"], graph["sft"]
    assert isinstance(align.params, AlignParams)
    assert (align.params.target_input, align.params.source_inputs) == (models[0], models[1:])
    assert align.params.strategy == "AvgCE"
    assert tuple(align.inputs) == models
    assert isinstance(sft.params, SftParams)
    assert sft.params.fusion is not None
    assert (sft.params.fusion.targets, sft.params.fusion.weight) == ("align/all", 0.3)
    assert set(sft.inputs) == {"sft-rows", "align/all"}


def test_only_the_targets_rows_are_cut_as_those_of_sft() -> None:
    graph = graph_of(fused(), {"sft": {"maxLength": 99, "maxPromptLength": 9}})
    target, source = graph["represent/target"].params, graph["represent/yi"].params
    assert isinstance(target, RepresentParams)
    assert isinstance(source, RepresentParams)
    assert (target.max_length, target.max_prompt_length, target.source) == (99, 9, "target")
    assert (source.max_length, source.max_prompt_length, source.source) == (None, None, "yi")
    assert source.model.name == "01-ai/Yi-1.5-34B-Chat"


def test_an_experiment_without_fusion_keeps_its_stages() -> None:
    plain, fusing = graph_of(), graph_of(fused())
    assert not [name for name in plain if name.startswith(("represent", "align"))]
    assert plain["curate-sft"].hash == fusing["curate-sft"].hash
    assert plain["sft"].hash != fusing["sft"].hash


def test_what_is_fused_does_not_change_what_is_represented() -> None:
    one = graph_of(fused(strategy="MinCE", weight=0.1))
    other = graph_of(fused(strategy="AvgCE", weight=0.9, sources=["yi"], alignment="DTW"))
    for name in ("represent/target", "represent/yi"):
        assert one[name].hash == other[name].hash
    assert "represent/qwen" not in other
    assert one["align/all"].hash != other["align/all"].hash


def test_other_distributions_have_another_name() -> None:
    names = {name for name in graph_of(fused(topK=3)) if name.startswith("represent/target")}
    assert names == {"represent/target--719f2"}


BACKENDS: dict[str, tuple[str, Image | None, str]] = {
    "the forward pass of the engine": ("Engine", None, "Scoring"),
    "vLLM": ("vLLM", Image.SAMPLER, "Generation"),
}


@pytest.mark.parametrize(("backend", "image", "work"), BACKENDS.values(), ids=BACKENDS.keys())
def test_the_backend_decides_the_image_and_the_accelerators(backend: str, image: Image | None, work: str) -> None:
    graph = graph_of(fused(backend=backend), AUTOMATIC)
    node = next(node for name, node in graph.items() if name.startswith("represent/qwen"))
    assert node.image is image
    assert [need.work.value for need in node.needs] == [work]


def test_the_engines_settings_of_sampling_are_those_of_vllm_alone() -> None:
    sampling = {"sampling": {"tensorParallelSize": 4, "engineArgs": {"max_num_seqs": 8, "seed": 1}}}
    rows = {"reward": {"shards": 3, "batchTokens": 77}}
    vllm = graph_of(fused(backend="vLLM"), sampling, rows)
    node = next(node for name, node in vllm.items() if name.startswith("represent/qwen"))
    assert (node.runtime.tensor_parallel_size, node.runtime.engine_args) == (4, {"max_num_seqs": 8})
    own = graph_of(fused(), sampling, rows)["represent/qwen"].runtime
    assert (own.tensor_parallel_size, own.engine_args, own.shards, own.batch_tokens) == (1, {}, 3, 77)


def test_a_failed_source_is_not_fused() -> None:
    graph = graph_of(fused(), without=frozenset({"qwen"}))
    assert list(graph["align/all"].inputs) == ["represent/target", "represent/yi"]


def test_a_fusion_whose_sources_have_all_failed_is_not_left_out() -> None:
    graph = graph_of(fused(sources=["qwen"]), without=frozenset({"qwen"}))
    assert list(graph["align/all"].inputs) == ["represent/target", "represent/qwen"]
    assert "align/all" in graph["sft"].inputs


FUSELLM = {"name": "fusellm", "fuse": {"sources": ["*"], "weight": 0.2}}


def with_systems(*systems: Any, **evaluation: Any) -> dict[str, Any]:
    return {"evaluation": {"systems": list(systems), **evaluation}}


def test_a_system_that_fuses_is_trained_from_the_target_as_sft_is() -> None:
    graph = graph_of(with_systems(FUSELLM), {"sft": {"learningRate": 1e-5, "epochs": 3}})
    own, plain = graph["fuse/fusellm"], graph["sft"]
    assert isinstance(own.params, FuseParams)
    assert isinstance(plain.params, SftParams)
    differing = {"stage", "fusion"}
    assert own.params.model_dump(exclude=differing) == plain.params.model_dump(exclude=differing)
    assert own.params.fusion is not None
    assert (own.params.fusion.targets, own.params.fusion.weight) == ("align/fusellm--fuse", 0.2)
    assert set(own.inputs) == {"sft-rows", "align/fusellm--fuse"}
    assert own.runtime == plain.runtime
    assert plain.params.fusion is None


def test_a_system_that_fuses_answers_with_the_model_that_it_trained() -> None:
    graph = graph_of(with_systems(FUSELLM, {"name": "pack", "select": {"by": "Random", "members": ["fusellm", "yi"]}}))
    answer = graph["answer/fusellm--held-out"]
    assert isinstance(answer.params, AnswerParams)
    assert answer.params.model.input == "fused/fusellm"
    assert list(answer.inputs) == ["prompts", "fused/fusellm"]
    assert "answers/fusellm--held-out" in graph["select/pack--held-out"].inputs
    assert not [name for name in graph if name.startswith("answer/qwen")], "fused sources answer nothing by themselves"


def test_systems_that_fuse_change_no_stage_of_the_experiment_and_share_distributions() -> None:
    other = {"name": "other", "fuse": {"sources": ["yi"], "strategy": "AvgCE"}}
    before, after = graph_of(fused()), graph_of(fused(), with_systems(FUSELLM, other))
    new = {name for name in after if name not in before}
    assert {name for name in new if name.partition("/")[0] in {"represent", "align", "fuse"}} == {
        "align/fusellm--fuse", "align/other--fuse", "fuse/fusellm", "fuse/other",
    }  # fmt: skip
    assert {name for name, node in before.items() if after[name].hash != node.hash} == {"evaluate", "report"}


def test_a_disabled_evaluation_trains_no_system() -> None:
    graph = graph_of(with_systems(FUSELLM, enabled=False))
    assert not [name for name in graph if name.startswith(("represent", "align", "fuse"))]


def test_a_system_that_fuses_has_the_pods_of_sft() -> None:
    spec = parse_spec(
        merged(raw_spec(), {**with_systems(FUSELLM), "sft": {"nodes": 2, "gpusPerNode": 4}, "training": {"nodes": 9}})
    )
    node = next(node for node in build_graph(spec) if str(node.id) == "fuse/fusellm")
    gang = gang_of(spec, node)
    assert (gang.nodes, gang.gpus_per_node) == (2, 4)


FUSECHAT = {"name": "fusechat", "fuse": {"sources": ["*"], "merge": {"method": "SCE", "selectTopK": 0.1}}}


def test_a_fusion_with_a_merge_trains_one_model_for_each_source_and_merges_them() -> None:
    graph = graph_of(with_systems(FUSECHAT, FUSELLM))
    models = {"fuse/fusechat--qwen": "qwen", "fuse/fusechat--yi": "yi"}
    assert {name for name in graph if name.startswith("fuse/")} == {*models, "fuse/fusellm"}
    for name, source in models.items():
        own, targets = graph[name].params, f"align/fusechat--fuse--{source}"
        assert isinstance(own, FuseParams)
        assert own.fusion is not None
        assert own.fusion.targets == targets
        assert set(graph[name].inputs) == {"sft-rows", targets}
        assert list(graph[targets].inputs) == ["represent/target", f"represent/{source}"]
    node = graph["merge/fusechat"]
    assert isinstance(node.params, MergeParams)
    assert node.params.base is not None
    assert node.params.base.name == parse_spec(raw_spec()).target.model
    assert [model.input for model in node.params.models] == ["fused/fusechat--qwen", "fused/fusechat--yi"]
    assert (node.params.method, node.params.select_top_k) == ("SCE", 0.1)
    assert list(node.inputs) == ["fused/fusechat--qwen", "fused/fusechat--yi"]
    answer = graph["answer/fusechat--held-out"].params
    assert isinstance(answer, AnswerParams)
    assert answer.model.input == "merge/fusechat"
    assert not [name for name in graph if name.startswith("answer/fusechat--qwen")], "they are only merged"


def test_the_row_of_fused_models_that_are_merged_shows_what_was_never_published() -> None:
    merge = {"method": "TaskArithmetic", "weights": [0.3], "search": {"budget": 16}}
    params = graph_of(with_systems({"name": "f", "fuse": {"sources": ["*"], "merge": merge}}))["evaluate"].params
    assert isinstance(params, EvaluateParams)
    row = next(row for row in params.systems if row.name == "f")
    assert (row.form, row.members, row.uses_reward) == ("Fuse", ("qwen", "yi"), True)
    assert row.choices == {
        "sources": "qwen, yi", "rows": "those of SFT", "strategy": "MinCE", "normalise": "PerToken",
        "alignment": "Spans", "vocabulary": "MinED", "weight": "0.1", "trainings": "one for each source",
        "merge": "TaskArithmetic", "merge weights": "(0.3,)", "search groups": "Block", "search budget": "16",
        "search population": "8", "search sigma": "0.2", "search prompts": "64", "search max_tokens": "256",
        "search reward": "main",
    }  # fmt: skip


def test_a_merge_of_fused_models_loses_a_failed_source_with_its_weight_and_is_left_out_with_one_left() -> None:
    sources = [{"name": name, "model": f"org/{name}"} for name in ("a", "b", "c")]
    merge = {"method": "TIES", "weights": [1, 2, 3]}
    changes = {"sources": sources, **with_systems({"name": "f", "fuse": {"sources": ["*"], "merge": merge}})}
    two, one = (graph_of(changes, without=frozenset(failed)) for failed in ({"b"}, {"b", "c"}))
    params = two["merge/f"].params
    assert isinstance(params, MergeParams)
    assert params.weight == (1.0, 3.0)
    assert [name for name in two if name.startswith("fuse/")] == ["fuse/f--a", "fuse/f--c"]
    assert not [name for name in one if name.startswith(("represent", "align", "fuse", "merge", "answer/f"))]


SEARCHED = {"name": "m", "merge": {"method": "TIES", "models": ["sft", "yi"], "search": {"budget": 24, "prompts": 9}}}


def test_a_search_reads_the_prompts_and_a_reward_and_runs_where_models_answer() -> None:
    pods = {"evaluate": {"limits": {"nvidia.com/gpu": 1}}}
    node = graph_of(with_systems(SEARCHED), {"resources": pods, "reward": {"concurrency": 3}})["merge/m"]
    params = node.params
    assert isinstance(params, MergeParams)
    assert params.search is not None
    assert (params.search.budget, params.search.prompts) == (24, 9)
    assert params.search.reward is not None
    assert params.search.reward.name == parse_spec(raw_spec()).reward.model
    assert list(node.inputs) == ["prompts", "sft"]
    assert node.resources is not None
    assert node.resources.limits == {"nvidia.com/gpu": 1}
    assert (node.needs, node.runtime.reward_concurrency) == ((), 3)


def test_a_search_gets_accelerators_for_its_model_and_its_reward_and_a_plain_merge_none() -> None:
    plain = {"name": "p", "merge": {"method": "TIES", "models": ["sft"]}}
    graph = graph_of(with_systems(SEARCHED, plain), AUTOMATIC)
    assert [need.work.value for need in graph["merge/m"].needs] == ["Generation", "Scoring"]
    assert graph["merge/p"].needs == ()
    assert graph["merge/p"].resources is None


def test_a_search_by_the_reward_of_a_judge_gets_its_key_and_is_not_marked() -> None:
    judge = {
        "name": "other",
        "reward": {"endpoint": "http://rewards.ml:8000/v1", "endpointModel": "rm"},
        "apiKeySecretRef": {"name": "rewards", "key": "token"},
    }
    merge = {"method": "TIES", "models": ["yi"], "search": {"reward": "other"}}
    graph = graph_of(with_systems({"name": "m", "merge": merge}, judges=[judge]))
    node, evaluate = graph["merge/m"], graph["evaluate"].params
    assert isinstance(node.params, MergeParams)
    assert node.params.search is not None
    assert node.params.search.reward is not None
    assert node.params.search.reward.endpoint == "http://rewards.ml:8000/v1"
    assert {name: key.name for name, key in node.secrets.items()} == {"WRPO_REWARD_API_KEY": "rewards"}
    assert isinstance(evaluate, EvaluateParams)
    assert {row.name: row.uses_reward for row in evaluate.systems}["m"] is False


JUDGE = {
    "name": "gpt", "endpoint": "https://judges.example.org/v1", "model": "gpt", "maxRequests": 700, "concurrency": 3,
    "apiKeySecretRef": {"name": "judges", "key": "token"},
}  # fmt: skip
SELF = {"name": "self", "serveReward": "main"}


def judged(judge: str = "gpt", *, judges: Any = (JUDGE, SELF), **changes: Any) -> dict[str, Any]:
    """Changes with a search by a judge of Arena-Hard, of which 50 items are set aside."""
    search = {"budget": 9, "objective": {"benchmark": "arena", "judge": judge}}
    arena = {"name": "arena", "kind": "ArenaHard", "development": 50, **changes}
    merge = {"method": "TIES", "models": ["yi"], "search": search}
    return with_systems({"name": "m", "merge": merge}, benchmarks=[arena], judges=list(judges))


def test_a_search_by_a_benchmark_reads_its_items_and_asks_its_judge_as_a_judge_stage_does() -> None:
    graph = graph_of(judged())
    node, reader = graph["merge/m"], graph["judge/m--arena--gpt"]
    assert isinstance(node.params, MergeParams)
    search = node.params.search
    assert search is not None
    assert (search.reward, search.prompts) == (None, 50)
    assert search.judge is not None
    assert search.judge.model_dump() == {name: getattr(reader.params, name) for name in search.judge.model_dump()}
    assert list(node.inputs) == ["bench/arena"]
    assert node.secrets == reader.secrets != {}
    assert node.runtime.model_sections["model"] == reader.runtime.model_sections["model"] == "evaluation.judges[gpt]"
    assert node.runtime.model_copy(update={"model_sections": {}}) == reader.runtime.model_copy(
        update={"model_sections": {}}
    )
    assert graph["bench/arena"].params.model_dump()["development"] == 50


def test_a_search_by_a_served_reward_has_its_accelerators_and_is_marked() -> None:
    graph = graph_of(judged("self"), AUTOMATIC)
    node, evaluate = graph["merge/m"], graph["evaluate"].params
    assert [need.work.value for need in node.needs] == ["Generation", "Scoring"]
    assert [need.work.value for need in graph_of(judged(), AUTOMATIC)["merge/m"].needs] == ["Generation"]
    assert node.runtime.model_sections["serve_reward"] == "reward"
    assert isinstance(evaluate, EvaluateParams)
    assert {row.name: row.uses_reward for row in evaluate.systems}["m"] is True


def test_the_row_of_a_search_by_a_benchmark_says_what_it_saw() -> None:
    params = graph_of(judged())["evaluate"].params
    assert isinstance(params, EvaluateParams)
    row = next(row for row in params.systems if row.name == "m")
    assert row.uses_reward is False
    assert {name: value for name, value in row.choices.items() if name in {"search prompts", "search objective"}} == {
        "search prompts": "50", "search objective": "arena by gpt, on items that no system is evaluated on",
    }  # fmt: skip
    assert "search reward" not in row.choices


CHANGES: dict[str, tuple[dict[str, Any], bool]] = {
    "another judge": (judged("self"), True),
    "another model of the judge": (judged(judges=[JUDGE | {"model": "gpt-2"}, SELF]), True),
    "more development items": (judged(development=51), True),
    "fewer items": (judged(limit=99), True),
    "another endpoint, key and limits": (
        judged(judges=[{"name": "gpt", "endpoint": "http://other/v1", "model": "gpt", "maxRequests": 9}, SELF]), False),
    "other answers of the systems": (judged(sampling={"maxTokens": 9}), False),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "is_computed"), CHANGES.values(), ids=CHANGES.keys())
def test_a_search_runs_again_if_its_judge_or_its_items_change(changes: dict[str, Any], is_computed: bool) -> None:
    assert (graph_of(changes)["merge/m"].hash != graph_of(judged())["merge/m"].hash) == is_computed


def test_the_requests_of_a_search_are_counted_before_it_runs_and_compared_with_the_limit() -> None:
    spec = parse_spec(merged(raw_spec(), judged()))
    nodes = {str(node.id): node for node in build_graph(spec)}
    # Two generations of eight candidates, 50 items, two orders of the answers; 450 items are left to evaluate.
    assert requests_of(spec, nodes["merge/m"], {}) == 16 * 50 * 2
    assert requests_of(spec, nodes["judge/m--arena--gpt"], {}) == 450 * 2
    warning = (
        "evaluation.judges[gpt].maxRequests is 700, and the search of merge/m needs 1600 requests, retries not "
        "counted; a stage that may not send all of them fails. Raise it, or lower budget or prompts of the search."
    )
    assert [text for text in warnings_of(spec, list(nodes.values()), None, {}) if "the search" in text] == [warning]


def test_pods_of_a_search_that_ask_an_endpoint_are_those_of_a_judge_for_network_policies() -> None:
    experiment = make_experiment(**judged())
    assert experiment.spec is not None
    rendered = render_attempt(experiment, make_planned(experiment, "merge/m"), RenderSettings())
    labels = next(item for item in rendered if item["kind"] == "Job")["spec"]["template"]["metadata"]["labels"]
    assert labels["wrpo.ai/egress"] == "judge"


STAGES = {
    "represent/target": "represent",
    "align/fusellm--fuse": "align",
    "fuse/fusellm": "fuse",
    "answer/fusellm--held-out": "answer",
    "align/fusechat--fuse--yi": "align",
    "fuse/fusechat--yi": "fuse",
    "merge/fusechat": "merge",
}


@pytest.mark.parametrize(("stage", "kind"), STAGES.items())
def test_the_engine_reads_the_configuration_of_each_stage_of_a_fusion(stage: str, kind: str) -> None:
    experiment = make_experiment(**with_systems(FUSELLM, FUSECHAT))
    assert experiment.spec is not None
    manifest = config_map(experiment, experiment.spec, make_planned(experiment, stage))
    config = StageConfig.model_validate_json(manifest["data"][CONFIG_FILE])
    assert config.params.kind() == kind
    named = config.params.model_dump(include={"target_input", "source_inputs", "fusion", "model", "models"})
    assert {role for role in config.inputs if f"'{role}'" in str(named)} == set(config.inputs) - {"sft-rows", "prompts"}
