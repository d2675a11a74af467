"""Conversion of Kubernetes dictionaries to the planner's facts. Pure; decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from pydantic import ValidationError

from wrpo_engine.config import TerminationMessage
from wrpo_operator.api import names
from wrpo_operator.api.backends import CHILD_KINDS, JOB, ChildKind
from wrpo_operator.api.placement import Placement
from wrpo_operator.plan.model import ChildFact, ChildState, PodFact
from wrpo_operator.render.training import BACKENDS
from wrpo_operator.runtime.resources import JsonObject, labels_of, meta, name_of, namespace_of, uid_of

MAIN_CONTAINERS = frozenset(kind.container for kind in CHILD_KINDS.values())
ATTEMPT_LABELS = (names.LABEL_EXPERIMENT_UID, names.LABEL_STAGE, names.LABEL_STAGE_HASH, names.LABEL_ATTEMPT)
ORDINARY_WAITS = frozenset({"", "ContainerCreating", "PodInitializing"})
DISRUPTION_REASONS = frozenset({"Evicted", "NodeLost", "NodeShutdown", "Preempting", "Shutdown", "Terminated"})
"""Pod status reasons set by kubelet or controllers, for pods without a DisruptionTarget condition."""
OWN_LIMITS = (
    "Pod ephemeral local storage usage exceeds",
    "Usage of EmptyDir volume",
    "exceeded its local ephemeral storage limit",
)
"""Messages of the kubelet about pods that exceeded their own limits, which would recur on every node."""
TERMINATION_TAIL = 1024
SCHEDULED = "PodScheduled"
DEFAULT_SCHEDULER = "default-scheduler"
BEGUN = frozenset({"Running", "Succeeded", "Unknown"})
"""Phases of a pod whose containers have started."""


def parse_time(text: object) -> datetime | None:
    """Parse an RFC 3339 time; None for anything else."""
    if not isinstance(text, str) or not text:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def child_facts(children: Iterable[JsonObject], pods: Iterable[JsonObject]) -> tuple[ChildFact, ...]:
    """Return the facts of every child that carries the operator's labels, with its pods, oldest first."""
    by_owner: dict[str, list[JsonObject]] = {}
    by_attempt: dict[tuple[str, ...], list[JsonObject]] = {}
    for pod in pods:
        by_owner.setdefault(controller_uid(pod), []).append(pod)
        by_attempt.setdefault(_attempt_key(pod), []).append(pod)
    facts = []
    for child in children:
        if kind_of(child).controls_pods:
            own = by_owner.get(uid_of(child), [])
        else:
            own = by_attempt.get(_attempt_key(child), [])
        fact = child_fact(child, own)
        if fact is not None:
            facts.append(fact)
    return tuple(sorted(facts, key=lambda fact: (fact.stage, fact.attempt, fact.name)))


def _attempt_key(obj: JsonObject) -> tuple[str, ...]:
    labels = labels_of(obj)
    return tuple(labels.get(key, "") for key in ATTEMPT_LABELS)


def controller_uid(obj: JsonObject) -> str:
    """Return the uid of the owner that controls `obj`, or the empty string."""
    for owner in meta(obj).get("ownerReferences") or ():
        if owner.get("controller"):
            return str(owner.get("uid", ""))
    return ""


def child_fact(child: JsonObject, pods: Sequence[JsonObject]) -> ChildFact | None:
    """Return the facts of one Job or training resource; None if it lacks this operator's labels."""
    labels = labels_of(child)
    attempt = labels.get(names.LABEL_ATTEMPT, "")
    needed = (names.LABEL_EXPERIMENT_UID, names.LABEL_STAGE, names.LABEL_STAGE_HASH, names.LABEL_ARTIFACT_KEY)
    if not attempt.isdecimal() or any(not labels.get(key) for key in needed):
        return None
    facts = tuple(sorted((pod_fact(pod) for pod in pods), key=lambda fact: fact.name))
    kind, status = kind_of(child), child.get("status") or {}
    failed = condition(status, kind.failed) or {}
    ended = condition(status, kind.succeeded) or failed
    state = child_state(child, facts)
    return ChildFact(
        kind=kind.kind,
        name=name_of(child),
        uid=uid_of(child),
        experiment=labels.get(names.LABEL_EXPERIMENT, ""),
        experiment_uid=labels[names.LABEL_EXPERIMENT_UID],
        stage=names.stage_from_label(labels[names.LABEL_STAGE]),
        stage_hash=labels[names.LABEL_STAGE_HASH],
        artifact_key=labels[names.LABEL_ARTIFACT_KEY],
        attempt=int(attempt),
        state=state,
        suspended=is_suspended(child),
        created_at=parse_time(meta(child).get("creationTimestamp")),
        started_at=_started_at(state, status, pods),
        finished_at=parse_time(status.get("completionTime") or ended.get("lastTransitionTime")),
        succeeded_shards=_succeeded_shards(child),
        failed_reason=str(failed.get("reason") or ""),
        failed_message=str(failed.get("message") or ""),
        pods=facts,
        queue=labels.get(names.LABEL_QUEUE, ""),
        namespace=namespace_of(child),
        placement=_placement(child),
    )


def _placement(child: JsonObject) -> Placement | None:
    """Return the accelerators that a child was created with; None if it has none, or an edit made them unreadable."""
    text = (meta(child).get("annotations") or {}).get(names.ANNOTATION_PLACEMENT)
    try:
        return Placement.model_validate_json(text) if isinstance(text, str) else None
    except ValidationError:
        return None


def condition(status: Mapping[str, object], type_: str) -> JsonObject | None:
    """Return the condition of this type if its status is True."""
    conditions = status.get("conditions")
    for entry in conditions if isinstance(conditions, list) else ():
        if entry.get("type") == type_ and entry.get("status") == "True":
            return dict(entry)
    return None


def kind_of(child: JsonObject) -> ChildKind:
    """Return the facts about a child's kind."""
    return CHILD_KINDS[child["kind"]]


def is_suspended(child: JsonObject) -> bool:
    """Return the suspend field of a Job or training resource."""
    return kind_of(child).is_suspended(child.get("spec") or {})


def child_state(child: JsonObject, pods: Sequence[PodFact]) -> ChildState:
    """Classify a child. A terminal condition counts even while it is being deleted: its outcome is known."""
    kind, status = kind_of(child), child.get("status") or {}
    if condition(status, kind.succeeded):
        return ChildState.SUCCEEDED
    if condition(status, kind.failed):
        return ChildState.FAILED
    if meta(child).get("deletionTimestamp"):
        return ChildState.DELETING
    if is_suspended(child):
        return ChildState.SUSPENDED
    return ChildState.RUNNING if _has_begun(child, pods) else ChildState.PENDING


def _has_begun(child: JsonObject, pods: Sequence[PodFact]) -> bool:
    """Return whether the work has started and waits for no pod.

    The pods decide until their controller reports the end of the child, which may take seconds, or longer while the
    controller is down. Only a pending replacement of a failed pod makes the child wait again.
    """
    status = child.get("status") or {}
    if condition(status, "SuccessCriteriaMet") or condition(status, "FailureTarget") or _succeeded_shards(child) > 0:
        return True
    phases = {pod.phase for pod in pods}
    return bool(phases & BEGUN) or ("Failed" in phases and "Pending" not in phases)


def _succeeded_shards(child: JsonObject) -> int:
    status = child.get("status") or {}
    return int(status.get("succeeded") or 0) if kind_of(child) is JOB else 0


def _started_at(state: ChildState, status: JsonObject, pods: Sequence[JsonObject]) -> datetime | None:
    """Return when the first container started; the child's startTime is a fallback only if it certainly ran."""
    starts = [start for pod in pods if (start := _container_started(pod)) is not None]
    if starts:
        return min(starts)
    if state in {ChildState.SUCCEEDED, ChildState.FAILED, ChildState.RUNNING}:
        return parse_time(status.get("startTime"))
    return None


def _main_status(pod: JsonObject) -> JsonObject:
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    for entry in statuses:
        if entry.get("name") in MAIN_CONTAINERS:
            return dict(entry)
    return {}


def _state(status: JsonObject, kind: str) -> JsonObject:
    return (status.get("state") or {}).get(kind) or {}


def _terminated(status: JsonObject) -> JsonObject:
    """Return the end of the container; for one that waits for a restart, its last end."""
    return _state(status, "terminated") or (status.get("lastState") or {}).get("terminated") or {}


def _container_started(pod: JsonObject) -> datetime | None:
    status = _main_status(pod)
    return parse_time((_state(status, "running") or _terminated(status)).get("startedAt"))


def has_ended(pod: JsonObject) -> bool:
    """Return whether all containers of a pod have terminated without a restart."""
    return (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}


def pod_fact(pod: JsonObject) -> PodFact:
    """Return the facts of one pod."""
    status = pod.get("status") or {}
    main = _main_status(pod)
    ended = _terminated(main)
    termination, text = parse_termination(str(ended.get("message") or ""))
    waiting_reason, waiting_message = _waiting(status)
    exit_code = ended.get("exitCode")
    spec = pod.get("spec") or {}
    is_overlooked = not spec.get("nodeName") and not any(c.get("type") == SCHEDULED for c in _conditions(status))
    over_limit = _over_limit(status)
    taken = status.get("reason") in DISRUPTION_REASONS and not over_limit
    return PodFact(
        name=name_of(pod),
        phase=str(status.get("phase") or "Pending"),
        node=spec.get("nodeName"),
        index=_index(pod),
        exit_code=exit_code if isinstance(exit_code, int) else None,
        termination=termination,
        termination_text=text,
        disrupted=condition(status, "DisruptionTarget") is not None or taken,
        over_limit=over_limit,
        waiting_reason=waiting_reason,
        waiting_message=waiting_message,
        unschedulable_message=_unschedulable(status),
        scheduler=str(spec.get("schedulerName") or DEFAULT_SCHEDULER) if is_overlooked else "",
        gates=() if spec.get("nodeName") else _names(spec.get("schedulingGates")),
        claims=_claims(spec) if is_overlooked else (),
        terminating_since=parse_time(meta(pod).get("deletionTimestamp")),
        finished_at=parse_time(ended.get("finishedAt")),
        terminated_reason=str(ended.get("reason") or ""),
        init_since=_init_since(status),
        created_at=parse_time(meta(pod).get("creationTimestamp")),
    )


def _over_limit(status: JsonObject) -> str:
    message = str(status.get("message") or "").strip()
    return message if status.get("reason") == "Evicted" and any(text in message for text in OWN_LIMITS) else ""


def _init_since(status: JsonObject) -> datetime | None:
    """Return since when an init container runs, e.g. a worker's that waits for the master's name."""
    starts = (
        parse_time(_state(entry, "running").get("startedAt")) for entry in status.get("initContainerStatuses") or ()
    )
    return min((start for start in starts if start is not None), default=None)


def parse_termination(message: str) -> tuple[TerminationMessage | None, str]:
    """Return the engine's termination message, or None and the tail of any other text."""
    if not message:
        return None, ""
    try:
        return TerminationMessage.model_validate_json(message), ""
    except ValidationError:
        return None, message.strip()[-TERMINATION_TAIL:]


def _waiting(status: JsonObject) -> tuple[str, str]:
    """Return why a container waits, if that is unusual."""
    entries = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    for entry in entries:
        waiting = _state(entry, "waiting")
        reason = str(waiting.get("reason") or "")
        if reason not in ORDINARY_WAITS:
            return reason, str(waiting.get("message") or "")
    return "", ""


def _unschedulable(status: JsonObject) -> str:
    """Return why no node fits a pod; scheduling gates are reported by name instead."""
    for entry in _conditions(status):
        is_refused = entry.get("type") == SCHEDULED and entry.get("status") == "False"
        if is_refused and entry.get("reason") != "SchedulingGated":
            return str(entry.get("message") or "no node fits")
    return ""


def _conditions(status: JsonObject) -> Sequence[JsonObject]:
    return status.get("conditions") or ()


def _names(entries: Iterable[JsonObject] | None) -> tuple[str, ...]:
    return tuple(str(entry.get("name") or "") for entry in entries or ())


def _claims(spec: JsonObject) -> tuple[str, ...]:
    """Return the targets of a pod's resource claims: a claim, or the template of one."""
    return tuple(
        str(entry.get("resourceClaimName") or entry.get("resourceClaimTemplateName") or entry.get("name") or "")
        for entry in spec.get("resourceClaims") or ()
    )


def _index(pod: JsonObject) -> int | None:
    """Return the completion index of an Indexed Job's pod, or the rank of a training pod (the master is 0)."""
    labels = labels_of(pod)
    annotations = meta(pod).get("annotations") or {}
    key = "batch.kubernetes.io/job-completion-index"
    text = str(labels.get(key) or annotations.get(key) or "")
    if text.isdecimal():
        return int(text)
    ranks = (backend.rank_of(labels) for backend in BACKENDS.values())
    return next((rank for rank in ranks if rank is not None), None)
