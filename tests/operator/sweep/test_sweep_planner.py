"""Decisions of sweeps, over random histories: limits hold, nothing is written twice, invalid sweeps change nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.builders import NOON, raw_spec

from wrpo_operator.api.status import Phase
from wrpo_operator.api.sweep import parse_sweep
from wrpo_operator.api.sweep_status import SweepStatus
from wrpo_operator.plan.sweep_expand import Expansion, expand
from wrpo_operator.plan.sweep_model import Action, Member, Refused, SweepPlan, SweepSnapshot
from wrpo_operator.plan.sweep_planner import plan_sweep

NAMES = "abcde"


def raw_sweep(**changes: Any) -> dict[str, Any]:
    return {"experiment": raw_spec(), "variants": [{"name": name} for name in NAMES[:3]], **changes}


def snapshot(*members: Member, raw: dict[str, Any] | None = None, **changes: Any) -> SweepSnapshot:
    raw = raw or raw_sweep()
    spec = parse_sweep(raw)
    found = expand("s", raw, spec, None)
    given = {"name": "s", "generation": 1, "spec": spec, "expansion": found, "status": SweepStatus(), **changes}
    return SweepSnapshot(members=members, **given)


def member(snapshot: SweepSnapshot, name: str, phase: Phase | None = Phase.RUNNING, **changes: Any) -> Member:
    (item,) = [item for row in snapshot.expansion.rows for item in row.experiments if item.name == name]
    return Member(**{"name": name, "uid": f"uid-{name}", "digest": item.digest, "phase": phase, **changes})


def actions(plan: SweepPlan) -> list[tuple[Action, str]]:
    return [(write.action, write.wanted.name) for write in plan.writes]


def rows(plan: SweepPlan) -> dict[str, tuple[str, str | None]]:
    return {row.name: (row.phase.value, row.message) for row in plan.status.variants}


def test_experiments_are_created_in_the_order_of_the_spec_up_to_the_limit() -> None:
    empty = snapshot(raw=raw_sweep(parallelExperiments=2))
    assert actions(plan_sweep(empty, NOON)) == [(Action.CREATE, "s-a"), (Action.CREATE, "s-b")]
    one = replace(empty, members=(member(empty, "s-a", Phase.SUCCEEDED), member(empty, "s-b")))
    plan = plan_sweep(one, NOON)
    assert actions(plan) == [(Action.CREATE, "s-c")]
    assert rows(plan)["c"] == ("Pending", "Waiting because spec.parallelExperiments is 2.")


def test_a_failed_experiment_leaves_its_room_to_others_and_fails_the_sweep_at_the_end_only() -> None:
    base = snapshot(raw=raw_sweep(parallelExperiments=1))
    failed = member(base, "s-a", Phase.FAILED, message="stage train failed")
    plan = plan_sweep(replace(base, members=(failed,)), NOON)
    assert actions(plan) == [(Action.CREATE, "s-b")]
    assert plan.status.phase is Phase.RUNNING
    done = (failed, member(base, "s-b", Phase.SUCCEEDED), member(base, "s-c", Phase.SUCCEEDED))
    plan = plan_sweep(replace(base, members=done), NOON)
    assert (plan.status.phase, plan.status.reason) == (Phase.FAILED, "VariantsFailed")
    assert rows(plan)["a"] == ("Failed", "stage train failed")


def test_an_edit_of_one_variant_updates_its_experiment_and_no_other() -> None:
    before = snapshot()
    members = tuple(member(before, f"s-{name}", Phase.SUCCEEDED) for name in "abc")
    edited = raw_sweep(variants=[{"name": "a"}, {"name": "b", "set": {"training.epochs": 2}}, {"name": "c"}])
    plan = plan_sweep(snapshot(*members, raw=edited), NOON)
    assert (actions(plan), plan.delete) == ([(Action.UPDATE, "s-b")], ())


def test_a_finished_experiment_waits_for_room_with_its_edit() -> None:
    before = snapshot()
    members = (member(before, "s-a"), member(before, "s-b", Phase.SUCCEEDED), member(before, "s-c", Phase.SUCCEEDED))
    edited = raw_sweep(
        parallelExperiments=1, variants=[{"name": "a"}, {"name": "b", "set": {"training.epochs": 2}}, {"name": "c"}]
    )
    plan = plan_sweep(snapshot(*members, raw=edited), NOON)
    assert actions(plan) == []
    assert rows(plan)["b"] == ("Pending", "The edited spec is waiting because spec.parallelExperiments is 1.")


def test_a_removed_variant_is_deleted() -> None:
    before = snapshot()
    members = tuple(member(before, f"s-{name}", Phase.SUCCEEDED) for name in "abc")
    plan = plan_sweep(snapshot(*members, raw=raw_sweep(variants=[{"name": "a"}, {"name": "c"}])), NOON)
    assert [gone.name for gone in plan.delete] == ["s-b"]


def test_suspension_stops_what_runs_and_resuming_respects_what_a_user_suspended() -> None:
    base = snapshot(raw=raw_sweep(suspend=True))
    members = (member(base, "s-a"), member(base, "s-b", Phase.SUCCEEDED))
    plan = plan_sweep(replace(base, members=members), NOON)
    assert (actions(plan), plan.status.phase) == ([(Action.SUSPEND, "s-a")], Phase.SUSPENDED)
    resumed = snapshot()
    held = (
        member(resumed, "s-a", Phase.SUSPENDED, is_suspended=True, was_suspended_by_sweep=True),
        member(resumed, "s-b", Phase.SUSPENDED, is_suspended=True),
        member(resumed, "s-c", Phase.SUCCEEDED),
    )
    assert actions(plan_sweep(replace(resumed, members=held), NOON)) == [(Action.RESUME, "s-a")]


def test_an_invalid_sweep_changes_nothing_and_says_why() -> None:
    raw = raw_sweep(variants=[{"name": "a", "set": {"training.bta": 1}}])
    valid = snapshot()
    plan = plan_sweep(snapshot(member(valid, "s-a"), member(valid, "s-b"), raw=raw), NOON)
    assert (plan.writes, plan.delete, plan.status.phase) == ((), (), Phase.INVALID)
    accepted = plan.status.condition("Accepted")
    assert accepted is not None
    assert accepted.message.startswith("Variant a: spec.training.bta is not a known field.")
    assert [event.reason for event in plan.events] == ["InvalidSpec"]


def test_a_refused_experiment_is_told_in_its_row_and_does_not_stop_others() -> None:
    base = snapshot(raw=raw_sweep(parallelExperiments=1), refused={"s-a": Refused("exceeded quota", is_final=False)})
    plan = plan_sweep(base, NOON)
    assert actions(plan) == [(Action.CREATE, "s-b")]
    assert rows(plan)["a"] == ("Pending", "The API server refuses WRPOExperiment s-a: exceeded quota")
    final = plan_sweep(replace(base, refused={"s-a": Refused("storage cannot be changed", is_final=True)}), NOON)
    assert rows(final)["a"][0] == "Failed"


def test_an_experiment_of_somebody_else_is_never_touched() -> None:
    plan = plan_sweep(snapshot(taken=frozenset({"s-a"})), NOON)
    assert "s-a" not in [name for _, name in actions(plan)]
    assert rows(plan)["a"] == (
        "Failed",
        "WRPOExperiment s-a exists and does not belong to this sweep. Delete it, or rename the variant.",
    )


BY_REWARD = [{"name": "all"}, {"name": "one", "sourcesBy": {"order": "MeanReward", "first": 1}}]


def test_the_order_by_mean_reward_is_recorded_once_all_sources_are_scored() -> None:
    base = snapshot(raw=raw_sweep(variants=BY_REWARD))
    assert base.expansion.scores is not None
    scores = {name: (key, float(place)) for place, (name, key) in enumerate(base.expansion.scores.hashes.items())}
    waiting = plan_sweep(replace(base, members=(member(base, "s-all"),)), NOON)
    assert waiting.status.source_order is None
    assert rows(waiting)["one"] == (
        "Pending",
        "Waiting for the scores of all sources, which decide their order.",
    )
    known = plan_sweep(replace(base, members=(member(base, "s-all", scores=scores),)), NOON)
    assert known.status.source_order is not None
    assert known.status.source_order.sources == ("yi", "qwen")
    failed = plan_sweep(replace(base, members=(member(base, "s-all", Phase.FAILED),)), NOON)
    assert failed.status.phase is Phase.FAILED
    assert (rows(failed)["one"][1] or "").startswith("The order of the sources cannot be decided")


def test_metrics_of_a_row_are_the_mean_over_its_seeds() -> None:
    base = snapshot(raw=raw_sweep(seeds=[1, 2], variants=[{"name": "a"}]))
    members = tuple(
        member(base, f"s-a-s{seed}", Phase.SUCCEEDED, metrics={"win_rate_vs_target": value})
        for seed, value in ((1, 0.5), (2, 0.7))
    )
    (row,) = plan_sweep(replace(base, members=members), NOON).status.variants
    assert (row.experiments, row.metrics) == ("2/2", {"win_rate_vs_target": 0.6})


@dataclass
class World:
    raw: dict[str, Any]
    members: dict[str, Member] = field(default_factory=dict)
    status: SweepStatus = field(default_factory=SweepStatus)
    minutes: int = 0

    def expansion(self) -> Expansion:
        return expand("s", self.raw, parse_sweep(self.raw), None)

    def plan(self) -> SweepPlan:
        self.minutes += 1
        found = SweepSnapshot(
            "s", 1, parse_sweep(self.raw), self.expansion(), self.status, tuple(self.members.values())
        )
        return plan_sweep(found, NOON + timedelta(minutes=self.minutes))

    def apply(self, plan: SweepPlan) -> None:
        for write in plan.writes:
            known = self.members.get(write.wanted.name)
            match write.action:
                case Action.CREATE:
                    assert known is None
                    self.members[write.wanted.name] = Member(write.wanted.name, "uid", write.wanted.digest)
                case Action.UPDATE:
                    assert known is not None
                    assert known.digest != write.wanted.digest
                    held = known.is_suspended and not known.was_suspended_by_sweep
                    self.members[known.name] = Member(known.name, "uid", write.wanted.digest, is_suspended=held)
                case Action.SUSPEND | Action.RESUME:
                    assert known is not None
                    stops = write.action is Action.SUSPEND
                    changes = {"is_suspended": stops, "was_suspended_by_sweep": stops}
                    self.members[known.name] = replace(known, **changes)  # type: ignore[arg-type]
        for gone in plan.delete:
            del self.members[gone.name]
        self.status = plan.status


class Sweeps(RuleBasedStateMachine):
    """A user edits, experiments end at random, and the operator plans now and then."""

    @initialize()
    def begin(self) -> None:
        self.world = World(raw_sweep(parallelExperiments=2))

    @rule(most=st.integers(1, 4))
    def limit(self, most: int) -> None:
        self.world.raw = {**self.world.raw, "parallelExperiments": most}

    @rule(names=st.sets(st.sampled_from(NAMES), min_size=1), epochs=st.integers(1, 3))
    def edit(self, names: set[str], epochs: int) -> None:
        variants = [{"name": name, "set": {"training.epochs": epochs} if name > "b" else {}} for name in sorted(names)]
        self.world.raw = {**self.world.raw, "variants": variants}

    @rule(suspend=st.booleans())
    def suspend(self, suspend: bool) -> None:
        self.world.raw = {**self.world.raw, "suspend": suspend}

    @rule(data=st.data(), phase=st.sampled_from([Phase.RUNNING, Phase.SUCCEEDED, Phase.FAILED]))
    def advance(self, data: st.DataObject, phase: Phase) -> None:
        active = [name for name, found in self.world.members.items() if found.is_active]
        if active:
            name = data.draw(st.sampled_from(active))
            self.world.members[name] = replace(self.world.members[name], phase=phase)

    @rule()
    def reconcile(self) -> None:
        before = sum(found.is_active for found in self.world.members.values())
        most = self.world.raw["parallelExperiments"]
        self.world.apply(self.world.plan())
        assert sum(found.is_active for found in self.world.members.values()) <= max(before, most)
        again = self.world.plan()
        assert not again.delete
        assert all(write.action is not Action.CREATE or most > 0 for write in again.writes)

    @rule()
    def settle(self) -> None:
        """Planning again and again ends, and every experiment can end."""
        self.world.raw = {**self.world.raw, "suspend": False}
        for _ in range(40):
            plan = self.world.plan()
            self.world.apply(plan)
            for name, found in self.world.members.items():
                if found.is_active:
                    self.world.members[name] = replace(found, phase=Phase.SUCCEEDED)
            if not plan.writes and not plan.delete and self.world.status.phase in {Phase.SUCCEEDED, Phase.FAILED}:
                break
        assert self.world.status.phase in {Phase.SUCCEEDED, Phase.FAILED}
        wanted = {item.name for row in self.world.expansion().rows for item in row.experiments}
        assert set(self.world.members) == wanted

    @invariant()
    def counts_add_up(self) -> None:
        found = self.world.status.experiments if hasattr(self, "world") else None
        if found is not None:
            assert found.total == found.pending + found.running + found.succeeded + found.failed


TestSweeps = Sweeps.TestCase
TestSweeps.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
