"""Variants, grids and patches become specs of experiments, and faults become one clear message each."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builders import raw_spec

from wrpo_operator.api.names import MAX_EXPERIMENT_NAME, member_name
from wrpo_operator.api.parsing import SpecError, parse_spec
from wrpo_operator.api.sweep import parse_sweep
from wrpo_operator.api.sweep_status import SourceOrder
from wrpo_operator.api.yamlio import load
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.plan.sweep_expand import Expansion, expand, source_order
from wrpo_operator.plan.sweep_patch import PatchError, apply_patch

LETTERS = "abcdefghij"
SOURCES = [{"name": name, "model": f"org/{name}"} for name in LETTERS]


def raw_sweep(**changes: Any) -> dict[str, Any]:
    return {"experiment": raw_spec(sources=SOURCES), "variants": [{"name": "all"}], **changes}


def expanded(order: SourceOrder | None = None, **changes: Any) -> Expansion:
    raw = raw_sweep(**changes)
    return expand("s", raw, parse_sweep(raw), order)


def errors_of(**changes: Any) -> tuple[str, ...]:
    return expanded(**changes).errors


def sources_of(found: Expansion) -> dict[str, list[str]]:
    return {
        row.name: [source["name"] for source in row.experiments[0].spec["sources"]]
        for row in found.rows
        if row.experiments
    }


def test_each_variant_and_seed_is_one_experiment_with_its_patch_and_seed() -> None:
    found = expanded(seeds=[1, 2], variants=[{"name": "a", "set": {"training.objective": "DPO"}}, {"name": "b"}])
    told = [
        (item.name, item.variant, item.seed, item.spec["training"].get("objective"), item.spec["training"]["seed"])
        for row in found.rows
        for item in row.experiments
    ]
    assert told == [
        ("s-a-s1", "a", 1, "DPO", 1),
        ("s-a-s2", "a", 2, "DPO", 2),
        ("s-b-s1", "b", 1, None, 1),
        ("s-b-s2", "b", 2, None, 2),
    ]


def test_seeds_leave_the_sampling_alone_unless_told_otherwise() -> None:
    (row,) = expanded(seeds=[7]).rows
    assert "seed" not in row.experiments[0].spec.get("sampling", {})
    (row,) = expanded(seeds=[7], perSeed=["Sampling"]).rows
    assert row.experiments[0].spec["sampling"]["seed"] == 7


def test_a_patch_replaces_the_value_and_unset_removes_the_field() -> None:
    base = raw_spec(sources=SOURCES, training={"alpha": {"schedule": "Linear", "max": 0.5}, "beta": 0.5})
    raw = {
        "experiment": base,
        "variants": [{"name": "a", "set": {"training.alpha": {"max": 0.2}}, "unset": ["training.beta"]}],
    }
    (row,) = expand("s", raw, parse_sweep(raw), None).rows
    assert row.experiments[0].spec["training"] == {"gpusPerNode": 0, "alpha": {"max": 0.2}}
    assert base["training"]["alpha"] == {"schedule": "Linear", "max": 0.5}


def test_an_item_of_a_list_is_named_by_its_name() -> None:
    spec = raw_spec(sources=SOURCES)
    apply_patch(spec, "sources[b].sampling.temperature", 0.5)
    assert spec["sources"][1] == {"name": "b", "model": "org/b", "sampling": {"temperature": 0.5}}


def test_a_grid_is_the_product_of_its_values_named_by_them() -> None:
    grid = [{"name": "a{a}-{o}", "for": {"a": [0.1, 1], "o": ["DPO", "IPO"]}, "set": {"training.objective": "{o}"}}]
    found = expanded(variants=[], grid=grid)
    assert [row.name for row in found.rows] == ["a0.1-dpo", "a0.1-ipo", "a1-dpo", "a1-ipo"]
    assert [row.experiments[0].spec["training"]["objective"] for row in found.rows] == ["DPO", "IPO", "DPO", "IPO"]


def test_a_placeholder_keeps_the_type_of_its_value_and_is_text_within_a_text() -> None:
    grid = [{"name": "e{e}", "for": {"e": [2]}, "set": {"training.epochs": "{e}", "reuse.salt": "run-{e}"}}]
    (row,) = expanded(variants=[], grid=grid).rows
    assert row.experiments[0].spec["training"]["epochs"] == 2
    assert row.experiments[0].spec["reuse"] == {"salt": "run-2"}


def test_a_parameter_named_n_is_understood_although_yaml_reads_it_as_a_boolean() -> None:
    text = 'name: "sources-{n}"\nfor: {n: [1, 2]}\nsourcesBy: {order: Listed, first: "{n}"}\n'
    grid = load(text)
    grid["for"] = {str(key).lower(): value for key, value in grid["for"].items()}
    found = expanded(variants=[], grid=[grid])
    assert sources_of(found) == {"sources-1": ["a"], "sources-2": ["a", "b"]}


def test_named_sources_keep_the_order_of_the_common_experiment() -> None:
    assert sources_of(expanded(variants=[{"name": "x", "sources": ["c", "a"]}])) == {"x": ["a", "c"]}


@settings(max_examples=25, deadline=None)
@given(draw=st.integers(0, 1000), small=st.integers(1, 9))
def test_random_subsets_are_nested_and_differ_between_draws_only(draw: int, small: int) -> None:
    def chosen(first: int) -> set[str]:
        by = {"order": "Random", "draw": draw, "first": first}
        return set(sources_of(expanded(variants=[{"name": "x", "sourcesBy": by}]))["x"])

    assert len(chosen(small)) == small
    assert chosen(small) < chosen(small + 1)
    assert chosen(small) == chosen(small)


BY_REWARD = [{"name": "all"}, {"name": "two", "sourcesBy": {"order": "MeanReward", "first": 2}}]


def test_sources_by_mean_reward_wait_for_the_scores_and_are_then_the_best() -> None:
    undecided = expanded(variants=BY_REWARD)
    assert [(row.name, len(row.experiments), row.number) for row in undecided.rows] == [("all", 1, 1), ("two", 0, 1)]
    assert undecided.scores is not None
    means = {name: float(place % 7) for place, name in enumerate(LETTERS)}
    order = source_order(undecided.scores, means, ())
    assert order is not None
    assert order.sources == ("g", "f", "e", "d", "c", "j", "b", "i", "a", "h")
    assert sources_of(expanded(order, variants=BY_REWARD))["two"] == ["f", "g"]


def test_an_order_of_other_scores_does_not_count() -> None:
    stale = SourceOrder(key="0" * 16, sources=tuple(LETTERS))
    assert not expanded(stale, variants=BY_REWARD).rows[1].experiments


def test_lost_sources_are_last_and_missing_scores_are_awaited() -> None:
    scores = expanded(variants=BY_REWARD).scores
    assert scores is not None
    means = dict.fromkeys(LETTERS[1:], 1.0)
    assert source_order(scores, means, ()) is None
    order = source_order(scores, means, ["a"])
    assert order is not None
    assert order.sources[-1] == "a"


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown path": (
        {"variants": [{"name": "x", "set": {"training.bta": 1}}]},
        "Variant x: spec.training.bta is not a known field. Check its spelling and place, or remove it.",
    ),
    "a value out of bounds": (
        {"variants": [{"name": "x", "set": {"training.epochs": 0}}]},
        "Variant x: spec.training.epochs is 0: it must be greater than or equal to 1.",
    ),
    "no path": (
        {"variants": [{"name": "x", "set": {"training..beta": 1}}]},
        "Variant x: 'training..beta' in set or unset is no path.",
    ),
    "a path through a number": (
        {"variants": [{"name": "x", "set": {"training.gpusPerNode.x": 1}}]},
        "Variant x: 'training.gpusPerNode.x' is set or unset, but gpusPerNode is no object with fields.",
    ),
    "an item that is missing": (
        {"variants": [{"name": "x", "set": {"sources[zz].shards": 2}}]},
        "Variant x: 'sources[zz].shards' is set or unset, but sources has no item named zz.",
    ),
    "overlapping paths": (
        {"variants": [{"name": "x", "set": {"training.alpha": {}, "training.alpha.max": 1.0}}]},
        "Variant x: set and unset have 'training.alpha' and 'training.alpha.max', which is a part of it.",
    ),
    "a path in set and in unset": (
        {"variants": [{"name": "x", "set": {"training.beta": 1}, "unset": ["training.beta"]}]},
        "Variant x: 'training.beta' is in set and in unset. Keep one of them.",
    ),
    "null": (
        {"variants": [{"name": "x", "set": {"training.beta": None}}]},
        "Variant x: set has null for 'training.beta', which kubectl apply drops without a word. Add the path to unset",
    ),
    "null within a value": (
        {"variants": [{"name": "x", "set": {"training.alpha": {"max": None}}}]},
        "Variant x: set has null for 'training.alpha'",
    ),
    "an unknown source": (
        {"variants": [{"name": "x", "sources": ["zz"]}]},
        "Variant x: sources names zz, which spec.experiment.sources does not have. Name some of a, b, c,",
    ),
    "too many sources": (
        {"variants": [{"name": "x", "sourcesBy": {"first": 11}}]},
        "Variant x: sourcesBy.first is 11, and spec.experiment has 10 sources. Set it to a number from 1 to 10.",
    ),
    "other prompts": (
        {"variants": [{"name": "x"}, {"name": "y", "set": {"prompts.limit": 10}}]},
        "Variant y: prompts.limit differs from variant x, so that their rows are not comparable.",
    ),
    "equal names": (
        {"variants": [{"name": "a-1"}], "grid": [{"name": "a-{k}", "for": {"k": [1]}}]},
        "spec: more than one variant is named a-1.",
    ),
    "a grid without its parameter": (
        {"grid": [{"name": "a-{k}", "for": {"j": [1]}}]},
        "spec.grid a-{k}: for has no parameter k; add it and its values.",
    ),
    "a grid without values": (
        {"grid": [{"name": "a-{k}", "for": {"k": []}}]},
        "spec.grid a-{k}: for.k must be a list of numbers or texts, e.g. [1, 2].",
    ),
    "a grid that is too large": (
        {"grid": [{"name": "a-{k}-{m}", "for": {"k": list(range(100)), "m": list(range(100))}}]},
        "spec: there are 10001 variants, and a sweep may have at most 512.",
    ),
    "no such baseline": (
        {"report": {"baseline": "zz"}},
        "spec.report.baseline is zz, which is no variant. Name one of all.",
    ),
    "scores that nobody computes": (
        {
            "variants": [
                {"name": "x", "sourcesBy": {"order": "MeanReward", "first": 2}},
                {"name": "y", "sources": ["a"]},
            ]
        },
        "spec: sourcesBy MeanReward needs the scores of b, c, d,",
    ),
    "a placeholder outside a grid": (
        {"variants": [{"name": "x", "sourcesBy": {"first": "{n}"}}]},
        "Variant x: sourcesBy has a placeholder, which only a grid replaces.",
    ),
}


@pytest.mark.parametrize("title", FAULTS)
def test_a_fault_is_told_with_variant_path_and_rule(title: str) -> None:
    changes, message = FAULTS[title]
    errors = errors_of(**changes)
    assert errors
    assert errors[0].startswith(message)


def test_prompts_may_differ_in_the_share_of_sft_and_otherwise_if_allowed() -> None:
    assert errors_of(variants=[{"name": "x"}, {"name": "y", "set": {"prompts.sftFraction": 0.5}}]) == ()
    unlike = [{"name": "x"}, {"name": "y", "set": {"prompts.limit": 10}}]
    assert errors_of(variants=unlike, allowUnlikePrompts=True) == ()


STRUCTURE: dict[str, tuple[dict[str, Any], str]] = {
    "nothing to run": ({"variants": []}, "spec: variants and grid are both empty, so there is nothing to run"),
    "a share without a divisor": ({"maxGpus": 8}, "spec: maxGpus is divided among the experiments"),
    "a share of nothing": ({"maxGpus": 1, "parallelExperiments": 2}, "spec: maxGpus is below parallelExperiments"),
    "twice the same seed": ({"seeds": [1, 1]}, "spec.seeds: value `1` is used more than once; it must be unique."),
    "twice the same name": (
        {"variants": [{"name": "a"}, {"name": "a"}]},
        "spec.variants: name `a` is used more than once; it must be unique.",
    ),
    "two choices of sources": (
        {"variants": [{"name": "a", "sources": ["a"], "sourcesBy": {"first": 1}}]},
        "spec: sources and sourcesBy of a variant exclude each other; keep one.",
    ),
    "an unknown field": ({"varaints": []}, "spec.varaints is not a known field."),
    "a missing experiment": (
        {"experiment": None},
        "spec.experiment is missing. Set it; `kubectl explain wrposweeps.spec.experiment` describes it.",
    ),
}


@pytest.mark.parametrize("title", STRUCTURE)
def test_a_sweep_of_the_wrong_form_is_refused(title: str) -> None:
    changes, message = STRUCTURE[title]
    raw = {key: value for key, value in raw_sweep(**changes).items() if value is not None}
    with pytest.raises(SpecError) as caught:
        parse_sweep(raw)
    assert caught.value.errors[0].startswith(message)


def test_every_experiment_gets_an_equal_share_of_the_accelerators_at_most_its_own_limit() -> None:
    variants = [{"name": "a"}, {"name": "b", "set": {"scheduling.maxGpus": 2}}]
    found = expanded(maxGpus=10, parallelExperiments=3, variants=variants)
    assert [row.experiments[0].spec["scheduling"]["maxGpus"] for row in found.rows] == [3, 2]


def test_systems_are_appended_to_the_evaluation_of_every_variant() -> None:
    own = {"name": "own", "source": "qwen"}
    further = [
        {"name": "pack", "select": {"by": "Perplexity", "members": ["*", "target"]}},
        {"name": "moa", "mixture": {"proposers": ["*"], "aggregator": "target"}},
        {"name": "fusellm", "fuse": {"sources": ["*"]}},
    ]
    found = expanded(
        systems=further,
        experiment=raw_spec(evaluation={"systems": [own]}),
        variants=[{"name": "a"}, {"name": "b", "set": {"training.objective": "DPO"}}],
    )
    assert found.errors == ()
    for row in found.rows:
        spec = parse_spec(row.experiments[0].spec)
        assert [system.name for system in spec.evaluation.systems] == ["own", "pack", "moa", "fusellm"]
        stages = {str(node.id) for node in build_graph(spec)}
        assert {"answer/qwen--held-out", "select/pack--held-out", "mixture/moa--held-out", "fuse/fusellm"} <= stages


def test_a_system_that_a_variant_cannot_have_is_an_error_of_that_variant() -> None:
    errors = errors_of(
        systems=[{"name": "fusellm", "fuse": {"sources": ["*"]}}],
        variants=[{"name": "a"}, {"name": "b", "set": {"sft.enabled": False}}],
    )
    (error,) = errors
    assert error == (
        "Variant b: spec: a system with fuse trains on the rows of SFT, which is disabled; set sft.enabled to true or "
        "remove the system."
    )


def test_a_system_without_a_form_is_an_error() -> None:
    errors = errors_of(systems=[{"name": "packllm"}])
    assert errors
    assert all(
        "a system must have exactly one of model, source, select, mixture, fuse, merge" in error for error in errors
    )


@given(sweep=st.text("ab-", min_size=1, max_size=63), variant=st.text("ab.-", min_size=1, max_size=40))
def test_names_are_short_deterministic_and_differ_with_the_seed(sweep: str, variant: str) -> None:
    names = {member_name(sweep, variant, seed) for seed in (None, 1, 2)}
    assert len(names) == 3
    assert all(len(name) <= MAX_EXPERIMENT_NAME for name in names)


def test_500_variants_are_planned_within_seconds() -> None:
    variants = [{"name": f"v{number}", "set": {"training.learningRate": 1e-7 * (number + 1)}} for number in range(500)]
    began = time.process_time()
    found = expanded(variants=variants)
    assert time.process_time() - began < 10
    assert len({item.digest for row in found.rows for item in row.experiments}) == 500


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_patch_gives_valid_experiments_or_one_sentence_about_its_variant(data: st.DataObject) -> None:
    paths = [
        "training",
        "training.beta",
        "sources[a]",
        "sources",
        "prompts",
        "a.b",
        "sft.enabled",
        "storage",
        "[x]",
        "",
        ".",
    ]
    values: st.SearchStrategy[Any] = (
        st.none() | st.booleans() | st.integers(-2, 5) | st.text("{}na.", max_size=4) | st.just({}) | st.just([])
    )
    patch = data.draw(st.dictionaries(st.sampled_from(paths), values, max_size=3))
    found = expanded(variants=[{"name": "x", "set": patch}])
    assert all(error.startswith(("Variant x: ", "spec")) and error.endswith((".", "…")) for error in found.errors)
    for row in found.rows:
        parse_spec(row.experiments[0].spec)


def test_a_path_to_nothing_is_refused() -> None:
    with pytest.raises(PatchError, match="is no path"):
        apply_patch({}, "", 1)
