"""When the next attempt of a stage may start: after pods that still run, and after disruptions."""

from __future__ import annotations

from dataclasses import replace

from support.builders import make_pod
from support.model_cluster import at_stage, child_of, started, status_of

from wrpo_operator.api.status import MAX_ATTEMPTS, ExperimentStatus, Phase
from wrpo_operator.plan.planner import LOOK_AGAIN_S
from wrpo_operator.plan.retry import JITTER


def test_disruptions_in_a_row_are_paused_for_and_their_children_do_not_pile_up() -> None:
    cluster = started(retries={"limit": 0})
    at_stage(cluster, "train")
    pauses = []
    for number in range(1, 13):
        name = max((n for n, c in cluster.children.items() if c.stage == "train"), key=lambda n: int(n.split("-a")[1]))
        cluster.disrupt(name)
        answer = cluster.reconcile("demo")
        pauses.append(0 if answer.apply else answer.requeue_after_s)
        cluster.advance(pauses[-1] or 0)
        if not answer.apply:
            (start,) = cluster.reconcile("demo").apply
            assert start.attempt == number + 1
        assert sum(child.stage == "train" for child in cluster.children.values()) <= MAX_ATTEMPTS
        cluster.run(next(n for n, c in cluster.children.items() if c.stage == "train" and c.state == "Pending"))
        cluster.reconcile("demo")
    stage = status_of(cluster).stage_named("train")
    assert stage is not None
    assert (stage.consecutive_disruptions, stage.failed_attempts) == (12, 0)
    low = [0, *(min(3600.0, 10.0 * 2**n) for n in range(11))]
    # Times in the status are whole seconds.
    assert all(at_least - 1 <= pause <= at_least * (1 + JITTER) for at_least, pause in zip(low, pauses, strict=True))
    assert cluster.run_fairly("demo") is Phase.SUCCEEDED


def test_the_next_attempt_waits_until_every_pod_of_the_last_has_ended() -> None:
    cluster = started(retries={"limit": 1, "backoffSeconds": 0})
    at_stage(cluster, "train")
    name = child_of(cluster, "train")
    cluster.fail(name, 1)
    failed = cluster.children[name]
    peer = make_pod("peer-1", node="node-1")
    cluster.children[name] = replace(failed, pods=(*failed.pods, peer))
    cluster.pods[peer.name] = failed.artifact_key
    waiting = cluster.reconcile("demo")
    assert waiting.apply == ()
    assert status_of(cluster).reason == "PreviousAttemptRunning"
    assert [blocker.object for blocker in status_of(cluster).blockers] == ["Pod/peer-1"]
    cluster.children[name] = failed
    cluster.pods.clear()
    (second,) = cluster.reconcile("demo").apply
    assert second.attempt == 2


def test_nothing_starts_while_pods_of_a_child_that_is_gone_still_end() -> None:
    """A child deleted in the background goes at once, its pods have up to two minutes: by hand, and for a queue."""
    cluster = started(scheduling={"queueName": "gpus"})
    cluster.deletes_at_once = True
    at_stage(cluster, "train")
    by_hand = child_of(cluster, "train")
    cluster.delete_at_once(by_hand)
    assert cluster.reconcile("demo").apply == ()
    (blocker,) = status_of(cluster).blockers
    assert (blocker.object, blocker.reason) == (f"Pod/{by_hand}-0", "PreviousAttemptRunning")
    assert blocker.message == (
        f"Pod {by_hand}-0 of an earlier attempt of train has not terminated yet and may still write; the next "
        "attempt starts when it has. If its node is gone, delete the pod."
    )
    cluster.pods.clear()
    (again,) = cluster.reconcile("demo").apply
    cluster.run(again.child_name)
    cluster.reconcile("demo")
    cluster.edit("demo", suspend=True)
    cluster.reconcile("demo")
    cluster.edit("demo", suspend=False)
    assert cluster.reconcile("demo").apply == ()
    cluster.pods.clear()
    assert [start.attempt for start in cluster.reconcile("demo").apply] == [2]


def test_an_experiment_that_was_deleted_and_made_anew_waits_for_the_pods_of_the_first() -> None:
    cluster = started()
    at_stage(cluster, "prepare")
    cluster.delete_at_once(child_of(cluster, "prepare"))
    cluster.experiments["demo"].status = ExperimentStatus()
    cluster.experiments["demo"].uid = "uid-again"
    answer = cluster.reconcile("demo")
    assert (answer.apply, answer.requeue_after_s) == ((), LOOK_AGAIN_S)
    cluster.pods.clear()
    assert [start.attempt for start in cluster.reconcile("demo").apply] == [1]
