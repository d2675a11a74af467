"""How far stages and the experiment are."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from support.builders import NOON, make_child, make_experiment, make_snapshot

from wrpo_operator.api.status import ExperimentStatus, StageStatus
from wrpo_operator.plan.model import ChildState, Experiment, ProgressFact
from wrpo_operator.plan.planner import plan
from wrpo_operator.plan.progress import bounded_metrics
from wrpo_operator.plan.resources import gpus_of


def post(percent: float, *, shard: int = 0, remaining: float | None = None, at: int = 0) -> ProgressFact:
    return ProgressFact(percent, remaining, {"loss": percent}, NOON + timedelta(seconds=at), shard)


def look(experiment: Experiment, posts: tuple[ProgressFact, ...], **facts: object) -> ExperimentStatus:
    child = replace(make_child(experiment, "prepare"), **facts)  # type: ignore[arg-type]
    answer = plan(make_snapshot(experiment, [child], progress={("prepare", 1): posts}), NOON)
    assert answer.status is not None
    return answer.status


def sampled(posts: tuple[ProgressFact, ...], *, succeeded: int = 0) -> StageStatus:
    """Return sample/qwen of four shards with these posts."""
    experiment = make_experiment(sampling={"shards": 4})
    children = [
        make_child(experiment, "prepare", ChildState.SUCCEEDED),
        make_child(experiment, "sample/qwen", succeeded_shards=succeeded),
    ]
    answer = plan(make_snapshot(experiment, children, progress={("sample/qwen", 1): posts}), NOON)
    assert answer.status is not None
    stage = answer.status.stage_named("sample/qwen")
    assert stage is not None
    return stage


def test_a_post_shows_in_the_stage_and_the_experiment() -> None:
    status = look(make_experiment(), (post(50.0, remaining=33),))
    stage = status.stages[0]
    assert (stage.progress, stage.remaining_seconds, stage.metrics) == (50, 30, {"loss": 50.0})
    assert status.progress is not None
    assert (status.progress.percent, status.progress_text) == (0, "0%")


SHARDS: dict[str, tuple[tuple[ProgressFact, ...], int, int | None, str]] = {
    "nobody has said anything": ((), 0, None, "0/4"),
    "silent shards count nothing": ((post(100), post(60, shard=1)), 0, 40, "0/4"),
    "finished shards count whole": ((post(50, shard=3),), 3, 87, "3/4"),
    "nonsense is clipped": ((post(900), post(-5, shard=1)), 0, 25, "0/4"),
}


@pytest.mark.parametrize(("posts", "succeeded", "percent", "shards"), SHARDS.values(), ids=SHARDS.keys())
def test_shards_are_combined(posts: tuple[ProgressFact, ...], succeeded: int, percent: int | None, shards: str) -> None:
    stage = sampled(posts, succeeded=succeeded)
    assert (stage.progress, stage.shards) == (percent, shards)


def test_the_slowest_shard_decides_the_time_left_and_the_newest_post_the_metrics() -> None:
    stage = sampled((post(10, remaining=100, at=2), post(20, shard=1, remaining=500, at=1)))
    assert (stage.remaining_seconds, stage.metrics) == (500, {"loss": 10.0})


def test_a_post_never_ends_a_stage() -> None:
    assert look(make_experiment(), (post(100.0),)).stages[0].state == "Running"


def test_the_time_left_follows_from_the_stages_that_ran() -> None:
    experiment = make_experiment()
    done = make_child(experiment, "prepare", ChildState.SUCCEEDED, finished_at=NOON + timedelta(seconds=10))
    answer = plan(make_snapshot(experiment, [done]), NOON)
    assert answer.status is not None
    assert answer.status.progress is not None
    # prepare has weight 1 and took 10 s; the eighteen other stages weigh 106.
    assert (answer.status.progress.percent, answer.status.progress.remaining_seconds) == (0, 1060)


def test_metrics_are_finite_and_bounded() -> None:
    metrics = {f"m{i:03}": 1.0 for i in range(100)} | {"a": float("nan"), "b": float("inf")}
    kept = bounded_metrics(metrics)
    assert list(kept) == [f"m{i:03}" for i in range(64)]


def test_gpus_of_sharded_and_gang_stages() -> None:
    experiment = make_experiment(
        sampling={"shards": 3}, resources={"sample": {"limits": {"nvidia.com/gpu": "2"}}},
        training={"nodes": 2, "gpusPerNode": 8}, sft={"nodes": 1},
    )  # fmt: skip
    from support.builders import node_of

    assert experiment.spec is not None
    counts = {stage: gpus_of(experiment.spec, node_of(experiment, stage))
              for stage in ("sample/qwen", "score/qwen", "sft", "train")}  # fmt: skip
    assert counts == {"sample/qwen": 6, "score/qwen": 0, "sft": 8, "train": 16}
