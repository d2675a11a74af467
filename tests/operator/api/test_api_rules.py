"""Accepted and refused specs: the API server (schema and CEL) and parse_spec must agree on each."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import RAW_SPEC, merged, raw_spec
from support.crd_validation import experiment_object, holds, refusals

from wrpo_operator.api.rules import RULES
from wrpo_operator.api.spec import SpecError, parse_spec

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
    "tau without IPO": ({"training": {"tau": 0.2}}, "tau belongs to the IPO forms"),
    "gamma without SimPO": ({"training": {"gamma": 0.3}}, "gamma is a margin of the SimPO forms"),
    "smoothed labels in IPO": ({"training": {"objective": "IPO", "labelSmoothing": 0.1}}, "belongs to the DPO forms"),
    "normalised length in SimPO": (
        {"training": {"objective": "SimPO", "lengthNormalized": True}}, "lengthNormalized belongs to the DPO forms"),
    "mean log-ratios in DPO": ({"training": {"objective": "DPO", "ipoMean": True}}, "ipoMean belongs to the IPO forms"),
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
