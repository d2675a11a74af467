"""Accepted and refused specs: the API server (schema and CEL) and parse_spec must agree on each."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import RAW_SPEC, merged, raw_spec
from support.crd_validation import experiment_object, holds, refusals

from wrpo_operator.api.evaluation_names import name_rules
from wrpo_operator.api.parsing import SpecError, parse_spec
from wrpo_operator.api.rules import RULES

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SOURCE = {"name": "a", "model": "org/a"}

ACCEPTED: dict[str, dict[str, Any]] = {
    "the smallest spec": {},
    "storage in s3": {"storage": {"volume": None, "s3": {"uri": "s3://bucket/prefix"}}},
    "32 sources": {"sources": [{"name": f"s{i}", "model": "org/a"} for i in range(32)]},
    "a path as a model": {"target": {"model": "/models/.cache/llama-3"}},
    "a directory of the storage as a model": {"target": {"model": "storage://models/tiny"}},
    "a hub id without an owner": {"target": {"model": "gpt2"}},
    "remote code with a commit": {"reward": {"trustRemoteCode": True, "revision": COMMIT}},
    "remote code of a path": {"reward": {"trustRemoteCode": True, "model": "/models/armorm"}},
    "integers where numbers are": {"training": {"beta": 1, "alpha": {"max": 1}}},
    "no SFT, no SFT prompts": {"sft": {"enabled": False}, "prompts": {"sftFraction": 0}},
    "only SFT, no preference prompts": {"training": {"objective": "SFTOnly"}, "prompts": {"sftFraction": 1}},
    "no evaluation, no held-out prompts": {
        "evaluation": {"enabled": False}, "prompts": {"evaluation": {"prompts": 0}}},
    "SimPO with a margin": {"training": {"objective": "WRPO-SimPO", "beta": 10, "gamma": 3, "learningRate": 1e-6}},
    "alpha and beta without preferences": {
        "training": {"objective": "SFTOnly", "beta": 1, "alpha": {"schedule": "Constant", "max": 1}}},
    "IPO on means": {"training": {"objective": "IPO", "ipoMean": True, "tau": 0.5}},
    "smoothed labels": {"training": {"objective": "DPO", "labelSmoothing": 0.1, "lengthNormalized": True}},
    "a secret in the environment": {
        "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}}]},
    "an empty value in the environment": {"env": [{"name": "DEBUG", "value": ""}]},
    "a toleration of all taints": {"scheduling": {"tolerations": [{"operator": "Exists"}]}},
    "GPUs as number and as text": {"resources": {"sample": {"limits": {"nvidia.com/gpu": 1, "memory": "64Gi"}}}},
    "a reward function": {"reward": {"model": None, "function": "my_rewards.length:score"}},
    "a reward endpoint": {
        "reward": {"model": None, "endpoint": "http://rewards.ml:8000/v1", "endpointModel": "rm",
                   "apiKeySecretRef": {"name": "rm", "key": "key"}}},
    "two rewards": {"reward": {"weight": 2, "additional": [{"name": "length", "function": "a:b", "weight": 0.5}]}},
    "pairs of one source": {
        "training": {"objective": "SimPO"},
        "curation": {"pairing": "WithinSource", "scoreMargin": 0.01, "maxScoreGap": 0.1}},
    "adapters and held-out rows": {
        "training": {"lora": {"rank": 8, "targetModules": ["q_proj"]}, "holdout": {"patience": 3, "keepBest": True}}},
    "options of vLLM": {
        "sampling": {"quantization": "fp8", "stop": ["###"], "stopTokenIds": [7],
                     "engineArgs": {"kv_cache_dtype": "fp8", "max_num_seqs": 64}}},
    "a pod template with a volume": {
        "podTemplate": {"spec": {"volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "m"}}],
                                 "containers": [{"name": "stage",
                                                 "volumeMounts": [{"name": "models", "mountPath": "/models"}]}]}}},
}  # fmt: skip

ALPACA = {"name": "alpaca", "kind": "AlpacaEval2"}
JUDGE = {"name": "gpt", "endpoint": "https://judges.example.org/v1", "model": "gpt"}
MOA = {"proposers": ["*"], "aggregator": "target"}
PACK = {"by": "Perplexity", "members": ["*"]}


def evaluated(**lists: Any) -> dict[str, Any]:
    """Changes with benchmarks, judges and systems."""
    return {"evaluation": lists}


def benchmark(**fields: Any) -> dict[str, Any]:
    """Changes with one benchmark and one judge."""
    return evaluated(benchmarks=[ALPACA | fields], judges=[JUDGE])


def judge(**fields: Any) -> dict[str, Any]:
    """Changes with one benchmark and one judge, None removes a field."""
    found = {name: value for name, value in (JUDGE | fields).items() if value is not None}
    return evaluated(benchmarks=[ALPACA], judges=[found])


def system(name: str = "s", **form: Any) -> dict[str, Any]:
    """Changes with one system."""
    return evaluated(systems=[{"name": name, **form}])


ACCEPTED |= {
    "an evaluation with everything": evaluated(
        benchmarks=[ALPACA | {"preset": "SimPO", "baseline": "moa", "limit": 9, "sampling": {"topK": 3}},
                    {"name": "mt", "kind": "MTBench", "referenceSet": "gpt-4"},
                    {"name": "own", "kind": "Custom", "bundle": "/data/own", "protocol": "ArenaHardV2"}],
        judges=[JUDGE | {"apiKeySecretRef": {"name": "a", "key": "b"}, "extraBody": {"reasoning": {"effort": "low"}}},
                {"name": "own", "serve": {"model": "org/judge"}, "benchmarks": ["mt"]},
                {"name": "self", "serveReward": "main"},
                {"name": "length", "reward": {"function": "a:b"}, "benchmarks": ["held-out", "own"]}],
        systems=[{"name": "qwen", "source": "qwen"},
                 {"name": "other", "source": "yi"},
                 {"name": "big", "model": {"model": "org/big", "backend": "Transformers"}},
                 {"name": "pack", "select": {"by": "Perplexity", "members": ["target", "*", "big"], "text": "Chat"}},
                 {"name": "blender", "select": {"by": "PairRM", "members": ["sft", "trained"],
                                                "ranker": {"model": "llm-blender/PairRM-hf"}}},
                 {"name": "best", "select": {"by": "Reward", "members": ["*"], "reward": "length"}},
                 {"name": "moa", "mixture": {**MOA, "rounds": 3, "referenceTokens": 64}}]),
    "a benchmark that a reward scores": evaluated(
        benchmarks=[{"name": "own", "kind": "Custom", "bundle": "org/own"}],
        judges=[{"name": "length", "reward": {"function": "a:b"}}]),
}  # fmt: skip

FUSION = {"sources": ["*"]}


def fused(**fields: Any) -> dict[str, Any]:
    """Changes with SFT on the distributions of sources."""
    return {"sft": {"fusion": FUSION | fields}}


ACCEPTED |= {
    "a fusion with everything": fused(
        sources=["yi"], strategy="AvgCE", normalise="PerByte", topK=20, temperature=2, weight=0.9, alignment="DTW",
        band=0.5, compat=True, vocabulary="MS", statistics="Count", backend="vLLM", precision="float32"),
    "a fusion of all sources": fused(),
    "a system that fuses, as a member and a baseline": evaluated(
        benchmarks=[ALPACA | {"baseline": "fusellm"}],
        judges=[JUDGE],
        systems=[{"name": "fusellm", "fuse": FUSION | {"topK": 3}},
                 {"name": "pack", "select": PACK | {"members": ["fusellm", "*"]}},
                 {"name": "moa", "mixture": MOA | {"aggregator": "fusellm"}}]),
}  # fmt: skip

TIES = {"method": "TIES", "models": ["*"]}
EVA = {"method": "EVA", "members": ["*"]}
PAIRWISE = FUSION | {"merge": {"method": "SCE"}}

ACCEPTED |= {
    "a merge with everything": evaluated(systems=[{"name": "m", "merge": TIES | {
        "method": "DARE-TIES", "models": ["sft", "*"], "base": "target", "weights": [1, 0.5, -1], "density": 0.2,
        "lambda": 0.5, "normalize": True, "rescale": "Density", "dtype": "float32", "seed": 3}}]),
    "merges that are members, baselines and aggregators": evaluated(
        benchmarks=[ALPACA | {"baseline": "m"}],
        judges=[JUDGE],
        systems=[{"name": "m", "merge": TIES | {"method": "SLERP", "position": 0.3}},
                 {"name": "s", "merge": TIES | {"method": "SCE", "selectTopK": 0.1}},
                 {"name": "pack", "select": PACK | {"members": ["m", "*"]}},
                 {"name": "moa", "mixture": MOA | {"aggregator": "m"}},
                 {"name": "eva", "joint": EVA | {"members": ["m", "s"], "topK": 9, "embeddings": "Output"}}]),
    "a weighted mean with a model of negative weight": system(
        merge=TIES | {"method": "Linear", "weights": [2, -1], "normalize": False}),
    "a mean that has the tokenizer of one of its models": system(merge=TIES | {"method": "Linear", "base": "yi"}),
    "a searched merge": system(merge=TIES | {"seed": 3, "search": {
        "reward": "main", "groups": "Layer", "budget": 16, "population": 4, "sigma": 0.1, "prompts": 8,
        "maxTokens": 9}}),
    "fused models that are merged, as a member and a baseline": evaluated(
        benchmarks=[ALPACA | {"baseline": "f"}],
        judges=[JUDGE],
        systems=[{"name": "f", "fuse": FUSION | {"merge": {"method": "SCE", "selectTopK": 0.1}}},
                 {"name": "pack", "select": PACK | {"members": ["f", "*"]}}]),
    "a searched merge of fused models": system(
        fuse=FUSION | {"merge": {"method": "TaskArithmetic", "weights": [1, 2], "search": {}}}),
    "merges searched by an endpoint and by a served reward": evaluated(
        benchmarks=[ALPACA | {"development": 8, "limit": 9}],
        judges=[JUDGE, {"name": "self", "serveReward": "main", "benchmarks": ["alpaca"]}],
        systems=[{"name": "m", "merge": TIES | {"search": {"objective": {"benchmark": "alpaca", "judge": "gpt"}}}},
                 {"name": "f", "fuse": FUSION | {"merge": {"method": "TIES", "search": {
                     "objective": {"benchmark": "alpaca", "judge": "self"}}}}}]),
    "a search by a benchmark without preference prompts": {
        **evaluated(benchmarks=[ALPACA | {"development": 8}], judges=[JUDGE], systems=[{"name": "m", "merge": TIES | {
            "models": ["sft"], "search": {"objective": {"benchmark": "alpaca", "judge": "gpt"}}}}]),
        "prompts": {"sftFraction": 1}, "training": {"objective": "SFTOnly"}},
    "models that choose by perplexity": system(joint=EVA | {"method": "PackSim", "temperature": 2}),
}  # fmt: skip


def searched(*, of: str = "merge", objective: dict[str, Any] | None = None, **lists: Any) -> dict[str, Any]:
    """Changes with a search by a judge of a benchmark."""
    merge = {"method": "TIES", "search": {"objective": {"benchmark": "alpaca", "judge": "gpt"} | (objective or {})}}
    form = TIES | merge if of == "merge" else FUSION | {"merge": merge}
    usual = {"benchmarks": [ALPACA | {"development": 8}], "judges": [JUDGE], "systems": [{"name": "m", of: form}]}
    return evaluated(**usual | lists)


SELF = {"name": "pack", "select": {"by": "Random", "members": ["pack", "yi"]}}
NAMES: dict[str, tuple[dict[str, Any], str, str]] = {
    "a member that is not there": (
        system(select=PACK | {"members": ["yi", "gwen"]}),
        "spec.evaluation.systems[0].select.members[1] is gwen", "members are models: target, sft (if sft.enabled)"),
    "a proposer that is not there": (
        system(mixture=MOA | {"proposers": ["gwen"]}),
        "spec.evaluation.systems[0].mixture.proposers[0] is gwen", "members are models: target, sft (if sft.enabled)"),
    "a fused source that is not there": (
        fused(sources=["yi", "gwen"]), "spec.sft.fusion.sources[1] is gwen", "the models that are fused are sources"),
    "a fused source of a system that is not there": (
        system(fuse={"sources": ["gwen"]}),
        "spec.evaluation.systems[0].fuse.sources[0] is gwen", "the models that are fused are sources"),
    "a fused source of a system beside all of them": (
        system(fuse={"sources": ["yi", "*"]}),
        "spec.evaluation.systems[0].fuse.sources[0] is yi", "`*` contains all sources, so a source must not be"),
    "a merged model that is not there": (
        system(merge=TIES | {"models": ["yi", "gwen"]}),
        "spec.evaluation.systems[0].merge.models[1] is gwen", "merged models are target, sft (if sft.enabled)"),
    "a merged model that is merged itself": (
        evaluated(systems=[{"name": "m", "merge": TIES}, {"name": "n", "merge": TIES | {"models": ["m"]}}]),
        "spec.evaluation.systems[1].merge.models[0] is m", "merged models are target, sft (if sft.enabled)"),
    "a base that is not there": (
        system(merge=TIES | {"base": "gwen"}),
        "spec.evaluation.systems[0].merge.base is gwen", "merged models are target, sft (if sft.enabled)"),
    "a merged source beside all of them": (
        system(merge=TIES | {"models": ["yi", "*"]}),
        "spec.evaluation.systems[0].merge.models[0] is yi", "`*` contains all sources, so a source must not be"),
    "an arc between three models": (
        system(merge=TIES | {"method": "SLERP", "models": ["*", "sft"]}),
        "spec.evaluation.systems[0].merge.models is ['*', 'sft']", "SLERP merges exactly two models"),
    "the mean of one model": (
        system(merge=TIES | {"method": "Linear", "models": ["yi"]}),
        "spec.evaluation.systems[0].merge.models is ['yi']", "SLERP merges exactly two models, Linear and ModelStock"),
    "the stock of one model": (
        system(merge=TIES | {"method": "ModelStock", "models": ["yi"]}),
        "spec.evaluation.systems[0].merge.models is ['yi']", "SLERP merges exactly two models, Linear and ModelStock"),
    "weights of fewer models": (
        system(merge=TIES | {"models": ["*", "sft"], "weights": [1, 2]}),
        "spec.evaluation.systems[0].merge.weights is [1.0, 2.0]", "weights has one value for all models, or one for"),
    "fused models that are merged again": (
        evaluated(systems=[{"name": "f", "fuse": PAIRWISE}, {"name": "m", "merge": TIES | {"models": ["f"]}}]),
        "spec.evaluation.systems[1].merge.models[0] is f", "merged models are target, sft (if sft.enabled)"),
    "one fused model to merge": (
        system(fuse=PAIRWISE | {"sources": ["yi"]}),
        "spec.evaluation.systems[0].fuse.sources is ['yi']", "fuse.merge merges one model for each source"),
    "one source in all to fuse and merge": (
        {**system(fuse=PAIRWISE), "sources": [SOURCE]},
        "spec.evaluation.systems[0].fuse.sources is ['*']", "fuse.merge merges one model for each source"),
    "weights of more fused models": (
        system(fuse=FUSION | {"merge": {"method": "TIES", "weights": [1, 2, 3]}}),
        "spec.evaluation.systems[0].fuse.merge.weights is [1.0, 2.0, 3.0]", "weights has one value for all models"),
    "a search by a reward that is not there": (
        system(merge=TIES | {"search": {"reward": "rm"}}),
        "spec.evaluation.systems[0].merge.search.reward is rm", "there is no reward of this name; rewards are main"),
    "a search of fused models by a reward that is not there": (
        system(fuse=FUSION | {"merge": {"method": "TIES", "search": {"reward": "rm"}}}),
        "spec.evaluation.systems[0].fuse.merge.search.reward is rm", "there is no reward of this name; rewards are"),
    **{
        f"a search of a {of} by {name}": (
            searched(of=of, **changes),
            f"spec.evaluation.systems[0].{path}.search.objective.{field} is {value}", message)
        for of, path in (("merge", "merge"), ("fuse", "fuse.merge"))
        for name, field, value, message, changes in (
            ("a benchmark that is not there", "benchmark", "arena", "a search sees development items of a benchmark",
             {"objective": {"benchmark": "arena"}}),
            ("a benchmark that is evaluated as a whole", "benchmark", "alpaca", "a search sees development items of a",
             {"benchmarks": [ALPACA]}),
            ("a benchmark that compares with a system", "benchmark", "alpaca", "a search sees development items of a",
             {"benchmarks": [ALPACA | {"development": 8, "baseline": "target"}]}),
            ("a judge that is not there", "judge", "other", "a search asks a judge with endpoint or serveReward",
             {"objective": {"judge": "other"}}),
            ("a judge that its stage serves", "judge", "own", "a search asks a judge with endpoint or serveReward",
             {"objective": {"judge": "own"}, "judges": [{"name": "own", "serve": {"model": "org/judge"}}]}),
            ("a judge that is a reward", "judge", "rm", "a search asks a judge with endpoint or serveReward",
             {"objective": {"judge": "rm"}, "judges": [{"name": "rm", "reward": {"function": "a:b"}}]}),
            ("a judge of other benchmarks", "judge", "gpt", "a search asks a judge with endpoint or serveReward that",
             {"benchmarks": [ALPACA | {"development": 8}, {"name": "mt", "kind": "MTBench"}],
              "judges": [JUDGE | {"benchmarks": ["mt"]}, JUDGE | {"name": "other"}]}),
            ("a benchmark without a protocol", "judge", "gpt", "a search asks a judge with endpoint or serveReward",
             {"benchmarks": [{"name": "alpaca", "kind": "Custom", "bundle": "org/own", "development": 8}],
              "judges": [JUDGE, {"name": "rm", "reward": {"function": "a:b"}}]}))
    },
    "items that one benchmark sets aside and another one evaluates": (
        evaluated(benchmarks=[ALPACA, ALPACA | {"name": "dev", "development": 8}], judges=[JUDGE]),
        "spec.evaluation.benchmarks[1] is dev", "another benchmark has the same bundle, and one of them evaluates"),
    "other items of one bundle that are set aside": (
        evaluated(benchmarks=[ALPACA | {"development": 8}, ALPACA | {"name": "b", "development": 8, "limit": 9}],
                  judges=[JUDGE]),
        "spec.evaluation.benchmarks[1] is b", "another benchmark has the same bundle, and one of them evaluates"),
    "the usual base among the models": (
        system(merge=TIES | {"models": ["yi", "target"]}),
        "spec.evaluation.systems[0].merge.models is ['yi', 'target']", "the base, which is target if unset, has no"),
    "a base among all sources": (
        system(merge=TIES | {"base": "yi"}),
        "spec.evaluation.systems[0].merge.models is ['*']", "the base, which is target if unset, has no"),
    "a joint member that is no model": (
        evaluated(systems=[{"name": "e", "joint": EVA}, {"name": "f", "joint": EVA | {"members": ["e", "yi"]}}]),
        "spec.evaluation.systems[1].joint.members[0] is e", "members are models: target, sft (if sft.enabled)"),
    "a joint answer of one member": (
        system(joint=EVA | {"members": ["yi"]}),
        "spec.evaluation.systems[0].joint.members is ['yi']", "one member alone has nothing to choose from"),
    "the target as a fused source": (
        fused(sources=["target"]), "spec.sft.fusion.sources[0] is target", "the models that are fused are sources"),
    "a fused source beside all of them": (
        fused(sources=["*", "yi"]),
        "spec.sft.fusion.sources[1] is yi", "`*` contains all sources, so a source must not be"),
    "a member that is no model": (
        evaluated(systems=[SELF]),
        "spec.evaluation.systems[0].select.members[0] is pack", "members are models: target, sft (if sft.enabled)"),
    "the SFT model without SFT": (
        {**system(select=PACK | {"members": ["yi", "sft"]}), "sft": {"enabled": False}},
        "spec.evaluation.systems[0].select.members[1] is sft", "members are models: target, sft (if sft.enabled)"),
    "the trained model after SFT alone": (
        {**system(select=PACK | {"members": ["trained", "yi"]}), "training": {"objective": "SFTOnly"}},
        "spec.evaluation.systems[0].select.members[0] is trained", "members are models: target, sft (if sft.enabled)"),
    "an aggregator that is not there": (
        system(mixture=MOA | {"aggregator": "gwen"}),
        "spec.evaluation.systems[0].mixture.aggregator is gwen", "the aggregator is a model: target, sft, trained"),
    "a source beside all of them": (
        system(select=PACK | {"members": ["*", "yi"]}),
        "spec.evaluation.systems[0].select.members[1] is yi", "`*` contains all sources, so a source must not be"),
    "one member": (
        system(select=PACK | {"members": ["yi"]}),
        "spec.evaluation.systems[0].select.members is ['yi']", "one member alone has nothing to choose from"),
    "one source as all members": (
        {**system(select=PACK), "sources": [SOURCE]},
        "spec.evaluation.systems[0].select.members is ['*']", "one member alone has nothing to choose from"),
    "a source that is not there": (
        system(source="gwen"), "spec.evaluation.systems[0].source is gwen", "there is no source of this name"),
    "a source in two rows": (
        evaluated(systems=[{"name": "one", "source": "yi"}, {"name": "two", "source": "yi"}]),
        "spec.evaluation.systems[1].source is yi", "another system is this source; remove one of them"),
    "a system named as another source": (
        system("qwen", source="yi"), "spec.evaluation.systems[0].name is qwen", "a source has this name; choose"),
    "a source named as a model of the experiment": (
        {**system(mixture=MOA), "sources": [SOURCE | {"name": "sft"}]},
        "spec.sources[0].name is sft", "with evaluation.systems a source's name is part of stage names"),
    "a source with two dashes": (
        {**system(mixture=MOA), "sources": [SOURCE | {"name": "a--b"}]},
        "spec.sources[0].name is a--b", "with evaluation.systems a source's name is part of stage names"),
    "a baseline that is not there": (
        benchmark(baseline="gwen"), "spec.evaluation.benchmarks[0].baseline is gwen", "the baseline is a model or a"),
    "a benchmark that is not there": (
        judge(benchmarks=["alpaca", "arena"]),
        "spec.evaluation.judges[0].benchmarks[1] is arena", "a judge reads listed benchmarks, and a reward also"),
    "held-out prompts without a protocol": (
        judge(benchmarks=["alpaca", "held-out"]),
        "spec.evaluation.judges[0].benchmarks[1] is held-out", "a judge reads listed benchmarks, and a reward also"),
    "a benchmark without a judge": (
        evaluated(benchmarks=[ALPACA]), "spec.evaluation.benchmarks[0] is alpaca", "no judge reads the answers to"),
    "own prompts without a protocol": (
        benchmark(kind="Custom", bundle="/data/own"),
        "spec.evaluation.benchmarks[0] is alpaca", "no judge reads the answers to"),
    "a reward that is not there": (
        system(select=PACK | {"by": "Reward", "reward": "rm"}),
        "spec.evaluation.systems[0].select.reward is rm", "there is no reward of this name; rewards are main"),
    "a served reward that is not there": (
        judge(endpoint=None, model=None, serveReward="rm"),
        "spec.evaluation.judges[0].serveReward is rm", "there is no reward of this name; rewards are main"),
    "a judge named as an additional reward": (
        {**judge(), "reward": {"additional": [{"name": "gpt", "function": "a:b"}]}},
        "spec.evaluation.judges[0].name is gpt", "an additional reward has this name; choose another name for the"),
}  # fmt: skip
"""Names that refer to nothing or are ambiguous, with field and value, and the message."""

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no storage": ({"storage": {"volume": None}}, "storage must have exactly one of s3 and volume"),
    "two storages": ({"storage": {"s3": {"uri": "s3://bucket"}}}, "storage must have exactly one of s3 and volume"),
    "a source named target": ({"sources": [{"name": "target", "model": "org/a"}]}, "reserved for the target model"),
    "a moving revision with remote code": (
        {"target": {"trustRemoteCode": True, "revision": "main"}}, "needs a pinned revision"),
    "remote code of a source without revision": (
        {"sources": [SOURCE | {"trustRemoteCode": True}]}, "needs a pinned revision"),
    "a revision of a path": (
        {"target": {"model": "/models/a", "revision": "main"}}, "revision has no effect on a path"),
    "a revision of a file of prompts": (
        {"prompts": {"dataset": "/data/prompts.jsonl", "revision": "main"}}, "give a hub id as dataset"),
    "a revision of the same held-out prompts": (
        {"prompts": {"evaluation": {"revision": "main"}}}, "give a hub id as dataset"),
    "two rewards in one": (
        {"reward": {"function": "a:b"}}, "a reward must have exactly one of model, function and endpoint"),
    "a further reward without any": (
        {"reward": {"additional": [{"name": "x"}]}}, "a reward must have exactly one of model, function and endpoint"),
    "a moving reward with remote code": (
        {"reward": {"trustRemoteCode": True}}, "needs a model with a pinned revision"),
    "a revision of a reward on a path": (
        {"reward": {"model": "/m", "revision": "main"}}, "revision has an effect only on a hub id"),
    "a model name for no endpoint": ({"reward": {"endpointModel": "rm"}}, "endpointModel is sent to an endpoint"),
    "a second main reward": (
        {"reward": {"additional": [{"name": "main", "model": "org/rm"}]}}, "is that of the first reward"),
    "a source that reads like a reward": (
        {"reward": {"additional": [{"name": "x", "model": "org/rm"}]}, "sources": [SOURCE | {"name": "a--x"}]},
        "no source name may contain two dashes in a row"),
    "pairs for triples": ({"curation": {"pairing": "BestWorst"}}, "the WRPO objectives need triples"),
    "prompts as long as sequences": (
        {"training": {"maxLength": 100, "maxPromptLength": 100}}, "must be below maxLength"),
    "SFT prompts as long as sequences": ({"sft": {"maxLength": 100}}, "must be below maxLength"),
    "a variable with two values": (
        {"env": [{"name": "A", "value": "x", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]},
        "exactly one of value and valueFrom"),
    "a variable without value": ({"env": [{"name": "A"}]}, "exactly one of value and valueFrom"),
    "a variable of torchrun": ({"env": [{"name": "PET_NNODES", "value": "9"}]}, "belong to the stages"),
    "a toleration of nothing": ({"scheduling": {"tolerations": [{"value": "x"}]}}, "needs operator Exists"),
    "a value with Exists": (
        {"scheduling": {"tolerations": [{"key": "a", "operator": "Exists", "value": "x"}]}}, "has no value"),
    "topology without a queue": (
        {"scheduling": {"requiredTopology": "example.com/rack"}}, "are Kueue's and need a queue"),
    "two topologies": (
        {"scheduling": {"queueName": "q", "requiredTopology": "a/b", "preferredTopology": "a/c"}},
        "exclude each other"),
    "a PodGroup that nobody reads": ({"scheduling": {"podGroup": "SchedulerPlugins"}}, "set schedulerName"),
    "a PodGroup in a queue": (
        {"scheduling": {"podGroup": "Volcano", "queueName": "q"}}, "a queue already admits whole gangs"),
    "alpha without a source response": (
        {"training": {"objective": "DPO", "alpha": {"max": 0.5}}}, "alpha belongs to the objectives with a"),
    "beta in IPO": ({"training": {"objective": "IPO", "beta": 0.1}}, "beta belongs to the DPO and SimPO forms"),
    "tau without IPO": ({"training": {"tau": 0.2}}, "tau belongs to the IPO forms"),
    "gamma without SimPO": ({"training": {"gamma": 0.3}}, "gamma is a margin of the SimPO forms"),
    "smoothed labels in IPO": ({"training": {"objective": "IPO", "labelSmoothing": 0.1}}, "belongs to the DPO forms"),
    "normalised length in SimPO": (
        {"training": {"objective": "SimPO", "lengthNormalized": True}}, "lengthNormalized belongs to the DPO forms"),
    "mean log-ratios in DPO": ({"training": {"objective": "DPO", "ipoMean": True}}, "ipoMean belongs to the IPO forms"),
    "fusion without SFT": ({"sft": {"enabled": False, "fusion": FUSION}}, "fusion is part of SFT, which is disabled"),
    "fusion on prompts": (
        {"sft": {"lossTokens": "All", "fusion": FUSION}}, "the fusion loss is on tokens of responses alone"),
    "a system that fuses without SFT": (
        {**system(fuse=FUSION), "sft": {"enabled": False}}, "a system with fuse trains on the rows of SFT, which is"),
    "a system that fuses with a loss on prompts": (
        {**system(fuse=FUSION), "sft": {"lossTokens": "All"}}, "a system with fuse trains as SFT does"),
    "a system of two forms, one of which fuses": (
        system(fuse=FUSION, source="yi"), "a system must have exactly one of model, source, select, mixture, fuse"),
    "the released mistake with spans": (fused(compat=True), "compat is about the released code, which aligns tokens"),
    "a band of spans": (fused(band=0.5), "band limits dynamic time warping"),
    "counted pairs that nothing uses": (fused(statistics="Count"), "statistics of aligned pairs are part of"),
    "a fused source twice": (fused(sources=["yi", "yi"]), "sources names one twice"),
    "SFT without prompts": ({"prompts": {"sftFraction": 0}}, "prompts.sftFraction is 0, so SFT has no training data"),
    "preference optimisation without prompts": (
        {"prompts": {"sftFraction": 1}}, "prompts.sftFraction is 1, so preference optimisation has no prompts"),
    "only SFT, but disabled": (
        {"training": {"objective": "SFTOnly"}, "sft": {"enabled": False}}, "nothing would be trained"),
    "one sample": ({"sampling": {"samplesPerPrompt": 1}}, "sampling.samplesPerPrompt is 1"),
    "greedy samples": ({"sampling": {"temperature": 0}}, "sampling.temperature is 0"),
    "better sources without sources": (
        {"training": {"objective": "DPO"}, "curation": {"requireSourceBetter": True}}, "only the WRPO objectives use"),
    "evaluation without prompts": (
        {"prompts": {"evaluation": {"prompts": 0}}}, "prompts.evaluation.prompts is 0"),
    "a benchmark with two dashes": (benchmark(name="a--b"), "two dashes in a row, which separate the parts"),
    "a system with two dashes": (system("a--b", mixture=MOA), "two dashes in a row, which separate the parts"),
    "a benchmark named as the held-out prompts": (benchmark(name="held-out"), "name `held-out` is that of the held"),
    "a preset of another benchmark": (benchmark(preset="Official"), "preset has no published settings for this kind"),
    "a protocol of a known benchmark": (benchmark(protocol="MTBench"), "protocol is for kind Custom"),
    "own prompts from nowhere": (benchmark(kind="Custom", protocol="MTBench"), "kind Custom has no usual bundle"),
    "a baseline that nothing compares": (
        benchmark(kind="MTBench", baseline="target"), "baseline has no effect because MTBench rates each answer alone"),
    "references that nothing reads": (benchmark(referenceSet="gpt-4"), "referenceSet is for MTBench; remove it"),
    "a judge without any form": (judge(endpoint=None, model=None), "a judge must have exactly one of endpoint, serve"),
    "a judge of two forms": (judge(serveReward="main"), "a judge must have exactly one of endpoint, serve"),
    "a judge's model name for no endpoint": (
        judge(endpoint=None, serveReward="main"), "model is the name that is sent to an endpoint"),
    "an endpoint without a model name": (judge(model=None), "an endpoint may serve several models; set model"),
    "a reported name of no endpoint": (
        judge(endpoint=None, model=None, serveReward="main", reportedModel="gpt"),
        "reportedModel is the name that an endpoint reports; set endpoint"),
    "a key for no endpoint": (
        judge(endpoint=None, model=None, serveReward="main", apiKeySecretRef={"name": "a", "key": "b"}),
        "apiKeySecretRef is sent to an endpoint, and this judge has none"),
    "a judge named as the reward": (judge(name="main"), "name `main` is that of the experiment's reward"),
    "a judge that names a benchmark twice": (judge(benchmarks=["alpaca"] * 2), "benchmarks names one twice"),
    "a system without any form": (system(), "must have exactly one of model, source, select, mixture, fuse, merge"),
    "a system of two forms": (system(mixture=MOA, select=PACK), "a system must have exactly one of model, source"),
    "an arc with a base": (
        system(merge=TIES | {"method": "SLERP", "base": "target"}), "SLERP takes two models and no base"),
    "a mean with weights that may have the sum 0": (
        system(merge=TIES | {"method": "Linear", "weights": [1, -1]}), "Linear divides by the sum of the weights"),
    "a search of what has no weights": (
        system(merge={"method": "SCE", "models": ["*"], "search": {}}), "search has no effect on this method"),
    "a setting of a merge of fused models that it does not read": (
        system(fuse=FUSION | {"merge": {"method": "SCE", "density": 0.5}}), "density has no effect on this method"),
    "a search without prompts": (
        {**system(merge=TIES | {"search": {}}), "prompts": {"sftFraction": 1}, "training": {"objective": "SFTOnly"}},
        "a search of merge weights by a reward answers preference prompts"),
    "a search by a reward and a benchmark": (
        evaluated(benchmarks=[ALPACA | {"development": 8}], judges=[JUDGE], systems=[{"name": "m", "merge": TIES | {
            "search": {"reward": "main", "objective": {"benchmark": "alpaca", "judge": "gpt"}}}}]),
        "a search maximises one measure, reward or the score of objective; remove one of them"),
    "a benchmark of development items alone": (
        benchmark(development=9, limit=9), "development sets all items of limit aside, so that none is left"),
    "a merged model twice": (system(merge=TIES | {"models": ["yi", "yi"]}), "models names one twice"),
    "a joint member twice": (system(joint=EVA | {"members": ["yi", "yi"]}), "members names one twice"),
    **{
        f"{name} of a merge that does not read it": (
            system(merge={"method": method, "models": ["*"], name: value}), f"{name} has no effect on this method")
        for name, method, value in (
            ("weights", "SLERP", [0.5]), ("normalize", "SCE", False), ("density", "Linear", 0.5),
            ("lambda", "SCE", 0.5), ("position", "TIES", 0.1), ("selectTopK", "TIES", 0.1),
            ("rescale", "TIES", "Density"), ("seed", "TIES", 1))
    },
    **{
        f"{name} of a joint answer that does not read it": (
            system(joint={"method": method, "members": ["*"], name: value}), f"{name} has no effect on this method")
        for name, method, value in (
            ("temperature", "EVA", 2), ("agreement", "PackSim", 1), ("topK", "PackOpt", 1),
            ("neighbours", "Ensemble", 1), ("threshold", "PackTop1", 0.5), ("embeddings", "PackSim", "Output"))
    },
    "a system named as the target": (system("target", mixture=MOA), "names `target`, `sft` and `trained` are those of"),
    "PairRM without a ranker": (
        system(select=PACK | {"by": "PairRM"}), "ranker is the model that compares answers by PairRM"),
    "a ranker that ranks nothing": (
        system(select=PACK | {"ranker": {"model": "a/b"}}), "ranker is the model that compares answers by PairRM"),
    "a reward that selects nothing": (system(select=PACK | {"reward": "main"}), "reward has no effect on this choice"),
    "a member twice": (system(select=PACK | {"members": ["yi", "yi"]}), "members names one twice; remove one of them"),
    "a proposer twice": (system(mixture=MOA | {"proposers": ["yi", "yi"]}), "proposers names one twice"),
    "a remote code judge without a commit": (
        judge(endpoint=None, model=None, serve={"model": "org/j", "trustRemoteCode": True}),
        "trustRemoteCode runs code from the hub and so needs a pinned revision"),
    **{f"names: {name}": (changes, message) for name, (changes, _, message) in NAMES.items()},
}  # fmt: skip

STRUCTURAL: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown field": ({"traning": {}}, "spec.traning is not a known field."),
    "an unknown nested field": ({"training": {"lr": 1}}, "spec.training.lr is not a known field."),
    "a missing section": ({"reward": None}, "spec.reward is missing."),
    "text where a number is": ({"training": {"beta": "0.1"}}, 'spec.training.beta is "0.1"'),
    "a fraction where an integer is": ({"training": {"epochs": 1.5}}, "spec.training.epochs is 1.5"),
    "alpha above 1": ({"training": {"alpha": {"max": 1.5}}}, "spec.training.alpha.max is 1.5"),
    "alpha below 0": ({"training": {"alpha": {"max": -0.1}}}, "spec.training.alpha.max is -0.1"),
    "half of the labels wrong": ({"training": {"labelSmoothing": 0.5}}, "spec.training.labelSmoothing is 0.5"),
    "no sources": ({"sources": []}, "spec.sources is []"),
    "33 sources": ({"sources": [{"name": f"s{i}", "model": "o/a"} for i in range(33)]}, "spec.sources is ["),
    "a source name with an upper-case letter": ({"sources": [SOURCE | {"name": "Qwen"}]}, "spec.sources[0].name"),
    "a source name of 21 characters": ({"sources": [SOURCE | {"name": "a" * 21}]}, "spec.sources[0].name"),
    "a shell in a model name": ({"target": {"model": "$(rm -rf /)"}}, "spec.target.model"),
    "a model above the root": ({"target": {"model": "/models/../etc"}}, "spec.target.model"),
    "a model that is an option": ({"target": {"model": "--help"}}, "spec.target.model"),
    "a volume path above the root": ({"storage": {"volume": {"path": "../x"}}}, "spec.storage.volume.path"),
    "an unknown objective": ({"training": {"objective": "PPO"}}, "spec.training.objective"),
    "an unknown ZeRO stage": ({"training": {"zeroStage": 4}}, "spec.training.zeroStage"),
    "a negative quantity": ({"resources": {"train": {"limits": {"cpu": "-1"}}}}, "spec.resources.train.limits.cpu"),
    "a reward function that is no name": (
        {"reward": {"model": None, "function": "os.system('x')"}}, "spec.reward.function"),
    "an endpoint that is no URL": ({"reward": {"model": None, "endpoint": "rewards"}}, "spec.reward.endpoint"),
    "a key in the address of a judge": (
        judge(endpoint="https://me:secret@judges.example.org/v1"), "spec.evaluation.judges[0].endpoint is"),
    "a system with a capital": (system("MoA", mixture=MOA), "spec.evaluation.systems[0].name is"),
    "a mixture without an aggregator": (
        system(mixture={"proposers": ["yi"]}), "spec.evaluation.systems[0].mixture.aggregator is missing."),
    "an unknown benchmark": (benchmark(kind="AlpacaEval3"), "spec.evaluation.benchmarks[0].kind is"),
    "a digest that is none": (benchmark(bundleDigest="abc"), "spec.evaluation.benchmarks[0].bundleDigest is"),
    "no retries below none": ({"retries": {"limit": -1}}, "spec.retries.limit is -1"),
}  # fmt: skip


@pytest.mark.parametrize("changes", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_is_accepted(changes: dict[str, Any]) -> None:
    spec = raw_spec(**changes)
    assert refusals(experiment_object(spec)) == []
    parse_spec(spec)


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_is_refused_by_one_rule(changes: dict[str, Any], message: str) -> None:
    spec = raw_spec(**changes)
    by_server = refusals(experiment_object(spec))
    with pytest.raises(SpecError) as caught:
        parse_spec(spec)
    assert [message in text for text in by_server] == [True]
    assert [message in text for text in caught.value.errors] == [True]


@pytest.mark.parametrize(("changes", "message"), STRUCTURAL.values(), ids=STRUCTURAL.keys())
def test_is_refused_by_the_schema(changes: dict[str, Any], message: str) -> None:
    spec = raw_spec(**changes)
    assert len(refusals(experiment_object(spec))) >= 1
    with pytest.raises(SpecError) as caught:
        parse_spec(spec)
    assert any(text.startswith(message) for text in caught.value.errors), caught.value.errors


@pytest.mark.parametrize(("changes", "field", "message"), NAMES.values(), ids=NAMES.keys())
def test_a_wrong_name_is_shown_with_its_field(changes: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(raw_spec(**changes))
    assert [error.startswith(f"{field}: ") for error in caught.value.errors] == [True]
    assert message in caught.value.errors[0]


def test_every_rule_about_names_is_broken_in_a_test() -> None:
    messages = [message for *_, message in NAMES.values()]
    assert [rule.message for rule in name_rules() if not any(m in rule.message for m in messages)] == []


def test_every_rule_that_can_be_broken_is_broken_in_a_test() -> None:
    messages = [message for _, message in REFUSED.values()]
    untested = [rule.message for rule in RULES if rule.check and not any(text in rule.message for text in messages)]
    assert untested == []


def test_doubled_source_names_are_refused_by_both() -> None:
    spec = raw_spec(sources=[SOURCE, SOURCE])
    assert refusals(experiment_object(spec)) == ["spec.sources: duplicate ('a',)"]
    with pytest.raises(SpecError, match=r"^spec\.sources: name `a` is used more than once; names must be unique\.$"):
        parse_spec(spec)


def test_storage_cannot_be_changed() -> None:
    rule = next(rule.cel for rule in RULES if "oldSelf" in rule.cel)
    volume = {"volume": {"claimName": "a", "path": ""}}
    assert holds(rule, volume, oldSelf=volume)
    assert not holds(rule, volume, oldSelf={"volume": {"claimName": "b", "path": ""}})


def test_a_long_experiment_name_is_refused() -> None:
    assert refusals(experiment_object(raw_spec(), name="a" * 63)) == []
    assert "metadata.name" in refusals(experiment_object(raw_spec(), name="a" * 64))[0]


def test_an_error_names_field_value_and_remedy() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(raw_spec(prompts={"sftFraction": 0}))
    assert caught.value.errors == (
        ("spec: prompts.sftFraction is 0, so SFT has no training data; raise it above 0 or set sft.enabled to false."),
    )


def test_several_errors_are_told_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(raw_spec(training={"beta": 0, "gamma": -1}, traning={}))
    assert len(caught.value.errors) == 3


def test_a_spec_that_is_no_object_is_refused() -> None:
    with pytest.raises(SpecError):
        parse_spec([])  # type: ignore[arg-type]


CHANGES = st.sampled_from(
    [changes for changes, _ in [*REFUSED.values(), *STRUCTURAL.values()]] + list(ACCEPTED.values())
)


@given(st.lists(CHANGES, max_size=4))
def test_the_api_server_and_the_operator_accept_the_same_specs(changes: list[dict[str, Any]]) -> None:
    spec: dict[str, Any] = dict(RAW_SPEC)
    for change in changes:
        spec = merged(spec, change)
    try:
        parse_spec(spec)
        accepted = True
    except SpecError:
        accepted = False
    assert (refusals(experiment_object(spec)) == []) is accepted
