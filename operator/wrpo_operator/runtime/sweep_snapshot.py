"""Snapshots of sweeps for their planner, built from the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wrpo_operator.api import names
from wrpo_operator.api.conditions import ConditionType
from wrpo_operator.api.parsing import SpecError
from wrpo_operator.api.pod_template import STRICT, PodTemplatePolicy
from wrpo_operator.api.status import Phase
from wrpo_operator.api.sweep import SweepSpec, parse_sweep
from wrpo_operator.api.sweep_status import MAX_HEADLINES, SourceOrder, SweepStatus, parse_sweep_status
from wrpo_operator.plan.sweep_expand import Expansion, expand
from wrpo_operator.plan.sweep_model import Member, SweepSnapshot
from wrpo_operator.runtime.observe import condition
from wrpo_operator.runtime.resources import EXPERIMENTS, JsonObject, meta, name_of, namespace_of, uid_of
from wrpo_operator.runtime.store import Key, ObjectStore

_EXPLAINS = {
    Phase.FAILED: ConditionType.FAILED,
    Phase.INVALID: ConditionType.ACCEPTED,
    Phase.SUSPENDED: ConditionType.SUSPENDED,
}
_HEADLINES = ("win_rate", "mean_reward", "")
"""Starts of the names of metrics, the most important first."""


@dataclass(frozen=True, slots=True)
class _Expanded:
    """Expansion of one generation with one order of sources; neither ever changes."""

    uid: str
    generation: int
    order: SourceOrder | None
    spec: SweepSpec | None
    expansion: Expansion


class SweepSnapshots:
    """Reads the store and caches expansions: 500 variants take half a second."""

    def __init__(self, store: ObjectStore, policy: PodTemplatePolicy = STRICT) -> None:
        self._store = store
        self._policy = policy
        self._expanded: dict[Key, _Expanded] = {}

    def build(self, sweep: JsonObject) -> SweepSnapshot:
        """Return the snapshot of a sweep and its experiments. The reconciler adds refusals."""
        status = parse_sweep_status(sweep.get("status"))
        known = self._expansion(sweep, status)
        where, uid = namespace_of(sweep), uid_of(sweep)
        owned = [
            member_of(obj)
            for obj in self._store.labelled(EXPERIMENTS, names.LABEL_SWEEP_UID, uid, where)
            if is_owned(obj, uid)
        ]
        held = {member.name for member in owned}
        wanted = [item.name for row in known.expansion.rows for item in row.experiments]
        return SweepSnapshot(
            name=name_of(sweep),
            generation=int(meta(sweep).get("generation") or 0),
            spec=known.spec,
            expansion=known.expansion,
            status=status,
            members=tuple(sorted(owned, key=lambda member: member.name)),
            taken=frozenset(
                name for name in wanted if name not in held and self._store.get(EXPERIMENTS, where, name) is not None
            ),
            is_deleting=bool(meta(sweep).get("deletionTimestamp")),
        )

    def forget(self, key: Key) -> None:
        """Drop the cache of a sweep that was deleted or has ended."""
        self._expanded.pop(key, None)

    def _expansion(self, sweep: JsonObject, status: SweepStatus) -> _Expanded:
        key = (namespace_of(sweep), name_of(sweep))
        identity = (uid_of(sweep), int(meta(sweep).get("generation") or 0), status.source_order)
        known = self._expanded.get(key)
        if known is not None and (known.uid, known.generation, known.order) == identity:
            return known
        raw = sweep.get("spec") or {}
        spec, expansion = None, Expansion()
        try:
            spec = parse_sweep(raw)
            expansion = expand(name_of(sweep), raw, spec, status.source_order, self._policy)
        except SpecError as error:
            expansion = Expansion(errors=error.errors)
        found = self._expanded[key] = _Expanded(*identity, spec, expansion)
        return found


def is_owned(obj: JsonObject, uid: str) -> bool:
    """Return whether an object's controller has this uid: a label alone can be copied."""
    owners = meta(obj).get("ownerReferences") or ()
    return any(owner.get("uid") == uid and owner.get("controller") for owner in owners)


def member_of(obj: JsonObject) -> Member:
    """Return the facts about an experiment of a sweep; it has only those parts of the status that sweeps need."""
    metadata, spec, status = meta(obj), obj.get("spec") or {}, _mapping(obj.get("status"))
    annotations = _mapping(metadata.get("annotations"))
    is_current = status.get("observedGeneration") == metadata.get("generation")
    phase = _phase(status.get("phase")) if is_current else None
    stages = [stage for stage in status.get("stages") or () if isinstance(stage, dict)]
    return Member(
        name=name_of(obj),
        uid=uid_of(obj),
        digest=str(annotations.get(names.ANNOTATION_SWEEP_SPEC, "")),
        is_deleting=bool(metadata.get("deletionTimestamp")),
        is_suspended=bool(spec.get("suspend")),
        was_suspended_by_sweep=names.ANNOTATION_SWEEP_SUSPENDED in annotations,
        phase=phase,
        percent=int(_mapping(status.get("progress")).get("percent") or 0) if is_current else 0,
        metrics=_headlines(stages) if is_current else {},
        message=_message(status, phase),
        gpu_seconds=sum(int(stage.get("gpuSeconds") or 0) for stage in stages),
        scores=_scores(stages),
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _phase(text: Any) -> Phase | None:
    return Phase(text) if text in {phase.value for phase in Phase} else None


def _message(status: Mapping[str, Any], phase: Phase | None) -> str:
    """Return why an experiment failed, is suspended, or is blocked."""
    kind = _EXPLAINS.get(phase, ConditionType.BLOCKED) if phase else ConditionType.BLOCKED
    if phase is Phase.SUCCEEDED:
        return ""
    found = condition(status, kind) if kind is not ConditionType.ACCEPTED else _refusal(status)
    return str((found or {}).get("message") or "")


def _refusal(status: Mapping[str, Any]) -> Mapping[str, Any] | None:
    entries = [entry for entry in status.get("conditions") or () if isinstance(entry, dict)]
    return next((entry for entry in entries if entry.get("type") == ConditionType.ACCEPTED), None)


def _headlines(stages: list[dict[str, Any]]) -> dict[str, float]:
    """Return the most important metrics of the evaluation."""
    evaluate = next((stage for stage in stages if stage.get("name") == "evaluate"), {})
    found = {name: value for name, value in _mapping(evaluate.get("metrics")).items() if isinstance(value, int | float)}
    rank = {name: next(place for place, start in enumerate(_HEADLINES) if name.startswith(start)) for name in found}
    chosen = sorted(found, key=lambda name: (rank[name], name))[:MAX_HEADLINES]
    return {name: float(found[name]) for name in chosen}


def _scores(stages: list[dict[str, Any]]) -> dict[str, tuple[str, float | None]]:
    """Return hash and mean score of each source whose scoring has ended; None: it failed or was given up."""
    found = dict[str, tuple[str, float | None]]()
    for stage in stages:
        kind, _, source = str(stage.get("name")).partition("/")
        if kind != "score" or stage.get("state") not in {"Succeeded", "Failed", "Skipped"}:
            continue
        mean = _mapping(stage.get("metrics")).get("mean_score") if stage["state"] == "Succeeded" else None
        found[source] = (str(stage.get("hash")), float(mean) if isinstance(mean, int | float) else None)
    return found
