"""No field of the spec is idle: each changes a stage's configuration, a manifest, or what the planner decides."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain, islice
from typing import Any

import pytest
from pydantic import BaseModel
from support.builders import AUTOMATIC, raw_spec
from support.spec_leaves import JsonObject, Leaf, changed, hashes_of, leaves, manifests_of, plans_of, reach, stages_of

from wrpo_engine.config import (
    AlphaParams,
    ArtifactRef,
    ModelRef,
    RewardModel,
    Runtime,
    TrainParams,
    VolumeStorage,
)
from wrpo_engine.contract.base import Role, field_role
from wrpo_engine.contract.stage_config import StageConfig
from wrpo_engine.contract.stages import STAGES
from wrpo_operator.api.parsing import parse_spec
from wrpo_operator.api.spec import Alpha, ExperimentSpec, OptimizerSpec, Training
from wrpo_operator.plan.evaluation_params import generation_runtime
from wrpo_operator.plan.systems import EvaluatedModel

LORA: dict[str, Any] = {"lora": {}, "holdout": {}}
SOURCE = {"name": "qwen", "model": "Qwen/Qwen2-72B-Instruct", "revision": "main"}
BUCKET = {"uri": "s3://bucket/wrpo", "endpoint": "https://s3.example.org", "credentialsSecretName": "s3"}
PINNED = {"revision": "f" * 40}
ALPACA = {"name": "alpaca", "kind": "AlpacaEval2", "baseline": "target"}
ARENA = {"name": "arena", "kind": "ArenaHard", "preset": "Official"}
OWN_SET = {"name": "own", "kind": "Custom", "bundle": "storage://own", "protocol": "MTBench", "referenceSet": "gpt-4"}
JUDGE = {"name": "gpt", "endpoint": "https://judges.example.org/v1", "model": "gpt", "benchmarks": ["alpaca"],
         "apiKeySecretRef": {"name": "judges", "key": "token"}}  # fmt: skip
LENGTH = {"name": "length", "reward": {"function": "mine:length"}}
OTHER = LENGTH | {"name": "other"}
BY_MT = {"search": {"objective": {"benchmark": "other", "judge": "gpt"}}}
BASES: dict[str, JsonObject] = {
    "as short as can be": raw_spec(),
    "everything that has parts": raw_spec(
        sources=[SOURCE, {"name": "yi", "model": "01-ai/Yi-1.5-34B-Chat"}],
        reward={"additional": [{"name": "second", "model": "org/second", "revision": "main"}]},
        env=[{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}}],
        imagePullSecrets=[{"name": "pull"}],
        scheduling={"tolerations": [{"key": "gpu", "value": "h100"}], "queueName": "gpus"},
        sft=LORA,
        training=LORA,
        modelCache={"enabled": True},
    ),
    "rewards by endpoints": raw_spec(
        reward={
            "model": None,
            "endpoint": "http://rewards.ml:8000/v1",
            "endpointModel": "rm",
            "apiKeySecretRef": {"name": "rewards", "key": "token"},
            "additional": [{"name": "second", "endpoint": "http://rewards.ml:8000/v1"}],
        },
    ),
    "rewards by functions": raw_spec(
        reward={"model": None, "function": "mine:reward", "additional": [{"name": "second", "function": "mine:other"}]}
    ),
    "rewards from directories": raw_spec(
        reward={"model": "/models/rm", "additional": [{"name": "second", "model": "/models/second"}]},
        target={"model": "/models/target"},
        sources=[{"name": "qwen", "model": "/models/qwen"}],
    ),
    "held-out prompts of a hub": raw_spec(prompts={"evaluation": {"dataset": "org/held-out"}}),
    "an evaluation by an endpoint": raw_spec(
        evaluation={
            "benchmarks": [ALPACA, ARENA],
            "judges": [JUDGE, {"name": "other", "serveReward": "main"}],
            "systems": [{"name": "big", "model": {"model": "org/big", **PINNED}}],
        },
    ),
    "an evaluation by a judge of the cluster": raw_spec(
        evaluation={
            "benchmarks": [OWN_SET],
            "judges": [{"name": "own", "serve": {"model": "org/judge", **PINNED}}],
            "systems": [{"name": "large", "source": "qwen"}],
        },
    ),
    "an evaluation by a served reward": raw_spec(
        reward={"additional": [{"name": "other", "model": "org/second"}]},
        evaluation={
            "benchmarks": [ARENA],
            "judges": [{"name": "own", "serveReward": "main"}],
            "systems": [{"name": "pack", "select": {"by": "Perplexity", "members": ["target", "qwen"]}}],
        },
    ),
    "an evaluation by a further reward": raw_spec(
        evaluation={
            "benchmarks": [ARENA],
            "judges": [{"name": "own", "reward": {"model": "org/second", **PINNED}}, LENGTH],
            "systems": [
                {
                    "name": "blender",
                    "select": {"by": "PairRM", "members": ["*"], "ranker": {"model": "org/ranker", **PINNED}},
                }
            ],
        },
    ),
    "an evaluation by a reward's endpoint": raw_spec(
        evaluation={
            "benchmarks": [ARENA],
            "judges": [
                {
                    "name": "other",
                    "reward": {"endpoint": "http://rewards.ml:8000/v1", "endpointModel": "rm"},
                    "apiKeySecretRef": {"name": "rewards", "key": "token"},
                }
            ],
            "systems": [{"name": "best", "select": {"by": "Reward", "members": ["*"], "reward": "main"}}],
        },
    ),
    "an evaluation by a function": raw_spec(
        evaluation={
            "judges": [LENGTH],
            "systems": [{"name": "any", "select": {"by": "Random", "members": ["*"]}}],
        },
    ),
    "an evaluation by one judge": raw_spec(
        training={"objective": "SFTOnly"},
        evaluation={
            "benchmarks": [{"name": "own", "kind": "Custom", "bundle": "storage://own", "protocol": "ArenaHard"}],
            "judges": [JUDGE | {"benchmarks": []}],
        },
    ),
    "an evaluation of a mixture": raw_spec(
        evaluation={
            "systems": [{"name": "moa", "mixture": {"proposers": ["qwen"], "aggregator": "target", "rounds": 2}}],
        },
    ),
    "fusion of spans": raw_spec(sft={"fusion": {"sources": ["*"]}}),
    "fusion of warped tokens": raw_spec(sft={"fusion": {"sources": ["qwen"], "alignment": "DTW", "vocabulary": "MS"}}),
    "a system that fuses spans": raw_spec(evaluation={"systems": [{"name": "f", "fuse": {"sources": ["*"]}}]}),
    "a system that fuses warped tokens": raw_spec(
        evaluation={"systems": [{"name": "f", "fuse": {"sources": ["qwen"], "alignment": "DTW", "vocabulary": "MS"}}]}
    ),
    **{
        f"a merge by {method}": raw_spec(
            evaluation={"systems": [{"name": "m", "merge": {"method": method, "models": ["qwen", "sft"]}}]}
        )
        for method in ("DARE-TIES", "SCE")
    },
    "a merge along an arc": raw_spec(
        evaluation={"systems": [{"name": "m", "merge": {"method": "SLERP", "models": ["qwen", "sft"]}}]}
    ),
    "a searched merge": raw_spec(
        evaluation={
            "judges": [OTHER],
            "systems": [{"name": "m", "merge": {"method": "TIES", "models": ["qwen", "sft"], "search": {}}}],
        }
    ),
    **{
        f"fused models that are merged by {merge['method']}": raw_spec(
            evaluation={
                "judges": [OTHER],
                "systems": [{"name": "f", "fuse": {"sources": ["*"], "merge": merge}}],
            }
        )
        for merge in ({"method": "DARE-TIES"}, {"method": "SCE"}, {"method": "SLERP"}, {"method": "TIES", "search": {}})
    },
    **{
        f"a {next(iter(form))} searched by a judge": raw_spec(
            evaluation={
                "benchmarks": [ARENA | {"development": 90}, {"name": "other", "kind": "MTBench", "development": 40}],
                "judges": [JUDGE | {"benchmarks": []}, {"name": "other", "serveReward": "main"}],
                "systems": [{"name": "m", **form}],
            }
        )
        for form in (
            {"merge": {"method": "TIES", "models": ["qwen"], **BY_MT}},
            {"fuse": {"sources": ["*"], "merge": {"method": "TIES", **BY_MT}}},
        )
    },
    "fused models of warped tokens that are merged": raw_spec(
        evaluation={
            "systems": [
                {
                    "name": "f",
                    "fuse": {"sources": ["*"], "alignment": "DTW", "vocabulary": "MS", "merge": {"method": "SCE"}},
                }
            ]
        }
    ),
    **{
        f"a joint answer by {method}": raw_spec(
            evaluation={"systems": [{"name": "j", "joint": {"method": method, "members": ["qwen", "sft"]}}]}
        )
        for method in ("EVA", "PackSim")
    },
    "SimPO": raw_spec(training={"objective": "SimPO"}),
    "IPO": raw_spec(training={"objective": "WRPO-IPO"}),
    "a bucket": raw_spec(storage={"volume": None, "s3": BUCKET}),
    "gangs": raw_spec(training={"nodes": 2, "gpusPerNode": 4}, scheduling={"gang": "BestEffort"}),
    "a pod group": raw_spec(training={"nodes": 2}, scheduling={"podGroup": "Volcano"}),
    "a plain variable": raw_spec(env=[{"name": "HF_HOME", "value": "/cache"}]),
    "every taint": raw_spec(scheduling={"tolerations": [{"operator": "Exists"}]}),
    "a tainted key": raw_spec(scheduling={"tolerations": [{"key": "gpu"}]}),
    "no retries": raw_spec(retries={"limit": 0}),
    "accelerators that the operator chooses": raw_spec(
        **AUTOMATIC, accelerator={"memoryGiB": 80, "nodes": 4, "product": "H100"}, scheduling={"maxGpus": 16}
    ),
}
"""Specs in which each field can take effect. A field that is idle in all of them needs one more, if it is not idle."""

PLANNED = ("as short as can be", "no retries", "accelerators that the operator chooses", "an evaluation by one judge")
"""Those in which the planner is asked as well."""

LEAVES = list(leaves())
ENGINE: tuple[type[BaseModel], ...] = (
    *(definition.params for definition in STAGES.values()),
    ModelRef,
    RewardModel,
    Runtime,
)


@cache
def manifests_before(base: str) -> Any:
    return manifests_of(parse_spec(BASES[base]))


@cache
def plans_before(base: str) -> Any:
    return plans_of(parse_spec(BASES[base]))


def specs_with(leaf: Leaf, bases: Iterable[str] = BASES) -> Iterator[tuple[str, ExperimentSpec]]:
    """Yield bases and the same with another value in one leaf, a few values for each base.

    Those with the leaf's section come first, because others seldom accept it.
    """
    nearest = sorted(bases, key=lambda base: -reach(BASES[base], leaf))
    return ((base, spec) for base in nearest for spec in islice(changed(BASES[base], leaf), 3))


def effect_of(leaf: Leaf) -> tuple[str, ExperimentSpec] | None:
    """Return a base and a change of one leaf that changes anything that is applied or decided."""
    assert next(specs_with(leaf), None), f"{leaf}: no other valid value is known; add to TEXTS, OBJECTS or BASES"
    applied = (found for found in specs_with(leaf) if manifests_of(found[1]) != manifests_before(found[0]))
    decided = (found for found in specs_with(leaf, PLANNED) if plans_of(found[1]) != plans_before(found[0]))
    return next(chain(applied, decided), None)


@pytest.mark.parametrize("leaf", LEAVES, ids=str)
def test_a_field_of_the_spec_takes_effect(leaf: Leaf) -> None:
    effect = effect_of(leaf)
    assert effect, f"{leaf} has no effect: nothing that the operator applies or decides depends on it"
    base, spec = effect
    before, after = hashes_of(parse_spec(BASES[base])), hashes_of(spec)
    is_hashed = any(before[stage] != after[stage] for stage in before.keys() & after.keys())
    assert is_hashed == (leaf.role is Role.COMPUTED), f"{leaf} is declared as {leaf.role}, but hashed: {is_hashed}"


def test_what_a_stage_computes_is_made_of_computed_fields_and_its_runtime_of_execution_fields() -> None:
    """The engine's own fields too: a field in the wrong place would be hashed, or not, against its declaration."""
    assert {field_role(field) for field in Runtime.model_fields.values()} == {Role.EXECUTION}
    for params in ENGINE[:-1]:
        wrong = [name for name, field in params.model_fields.items() if field_role(field) is not Role.COMPUTED]
        assert wrong == [], params


def test_a_field_of_a_section_says_what_changing_it_means_exactly_if_it_re_runs_nothing() -> None:
    said = {str(leaf): "Changing it re-runs nothing." in leaf.node["description"] for leaf in LEAVES}
    own = {str(leaf): field_role(leaf.fields[-1][0].model_fields[leaf.fields[-1][1]]) for leaf in LEAVES}
    assert {name for name, is_said in said.items() if is_said} == {
        name for name, role in own.items() if role is Role.EXECUTION
    }


def test_an_override_says_what_holds_when_it_is_unset() -> None:
    field = next(leaf.node for leaf in LEAVES if str(leaf) == "spec.sources[0].sampling.gpuMemoryUtilization")
    assert field["description"] == (
        "Share of a GPU's memory that vLLM takes. Unset: sampling.gpuMemoryUtilization. Changing it re-runs nothing."
    )


DECLARED_AGAIN = {
    "Prompts.dataset": "narrower: the stage's own check says which place a path leads to",
    "RewardSource.endpoint": "narrower: the stage's own check refuses a password without showing it",
    "OptimizerSpec.lora": "the same section with camelCase names",
    "OptimizerSpec.holdout": "the same section with camelCase names",
    "Training.alpha": "the same section with camelCase names",
    "Training.backend": "another thing: the kind of child, not the sampler",
    "PinnedModel.model": "the engine's is an object, made of this and of revision and chatTemplate",
    "RewardSource.model": "the engine calls it name",
    "Source.name": "another thing: what the source is called",
    "AdditionalReward.name": "another thing: what the reward is called",
    "Sft.fusion": "the engine's names the role of the distributions, which the operator makes of this",
    "ExperimentSpec.reward": "another thing: the section about rewards",
    "EvaluationPrompts.dataset": "another thing: where held-out prompts come from",
    "Benchmark.baseline": "the engine's is a role, this is the name of a system",
    "Benchmark.protocol": "the engine's depends on the kind",
    "Evaluation.benchmarks": "another thing: what the user lists, without the held-out prompts",
    "Evaluation.systems": "another thing: what the user lists, without the experiment's models",
    "Judge.benchmarks": "another thing: which benchmarks a judge reads",
    "Judge.model": "optional: the engine's is that of a served judge too",
    "Judge.name": "another thing: what the judge is called",
    "Judge.reward": "another thing: a reward that scores directly",
    "Judge.serve": "the engine's is an object, made of this",
    "Judge.serve_reward": "the engine's is an object, this is the name of a reward",
    "Mixture.max_tokens": "another default: that of Mixture-of-Agents",
    "Mixture.temperature": "another default: that of Mixture-of-Agents",
    "Selection.members": "the engine's are roles, these are names of systems",
    "Selection.ranker": "the engine's is an object, made of this",
    "Selection.reward": "the engine's is an object, this is the name of a reward",
    "System.model": "the engine's is an object, made of this",
    "System.name": "another thing: what the system is called",
    "System.source": "another thing: the name of a source",
    "Benchmark.name": "another thing: what the benchmark is called",
    "RewardProvider.weight": "another thing: the share of a reward in the score",
}
"""Field of a section -> why it is written there although the engine has a parameter of that name."""


def test_a_section_writes_no_parameter_that_the_engine_declares() -> None:
    engine = {name for model in ENGINE for name in model.model_fields}
    sections = {model for leaf in LEAVES for field_model, _ in leaf.fields for model in field_model.__mro__}
    written = {
        f"{section.__name__}.{name}"
        for section in sections
        if section.__module__ in {f"wrpo_operator.api.{module}" for module in ("spec", "sections", "evaluation")}
        for name in section.__annotations__.keys() & engine
    }
    assert written == DECLARED_AGAIN.keys(), "declare it in wrpo_engine.contract, or say why it is another thing"


def test_a_parameter_has_one_default() -> None:
    """Also where a section writes a field again: the stage's hash leaves out what has the engine's default.

    What the operator chooses is unset in the section, so that the stage has the engine's default until then.
    """
    chosen = {"gradient_checkpointing", "micro_batch_tokens", "offload"}
    for section, model in ((OptimizerSpec, TrainParams), (Training, TrainParams), (Training, Runtime)):
        shared = (section.model_fields.keys() & model.model_fields.keys()) - {"alpha"}
        differing = {name for name in shared if section.model_fields[name].default != model.model_fields[name].default}
        assert differing == chosen & shared, section
        assert {section.model_fields[name].default for name in differing} <= {None}
    assert Alpha().model_dump() == AlphaParams().model_dump()


def test_a_stage_reads_from_its_file_what_was_planned_and_which_of_it_is_not_a_default() -> None:
    for raw in BASES.values():
        for node in stages_of(parse_spec(raw)).values():
            config = StageConfig(
                experiment="ml/demo",
                output=ArtifactRef(stage=str(node.id), hash=node.hash),
                storage=VolumeStorage(),
                params=node.params,
                runtime=node.runtime,
            )
            read = StageConfig.model_validate_json(json.dumps(config.file_content()))
            assert read == config
            assert read.runtime.model_fields_set == node.runtime.model_dump(exclude_defaults=True).keys()
            chosen = node.params.model_dump(exclude_defaults=True).keys() | {"stage"}
            assert read.params.model_fields_set == chosen


def test_evaluation_runs_the_engine_as_sampling_does_if_it_uses_the_same() -> None:
    arguments = {"kv_cache_dtype": "fp8", "max_num_seqs": 8}
    sampling = {"engineArgs": arguments, "maxModelLength": 4096}
    target = EvaluatedModel("target")
    runtime = generation_runtime(parse_spec(raw_spec(sampling=sampling)), target)
    assert (runtime.engine_args, runtime.context_limit) == (arguments, 4096)
    other = generation_runtime(parse_spec(raw_spec(sampling=sampling, evaluation={"backend": "Transformers"})), target)
    assert (other.engine_args, other.context_limit) == ({}, 4096)
