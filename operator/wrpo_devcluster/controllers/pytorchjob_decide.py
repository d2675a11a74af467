"""Pure decision for a PyTorchJob, equal to that of the training operator (1.9)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.clock import parse_time, timestamp
from wrpo_devcluster.controllers.pytorchjob_render import REPLICA_INDEX, REPLICA_TYPE
from wrpo_devcluster.objects import is_active, is_deleting, is_terminal, labels_of, pod_phase

KIND = "PyTorchJob"


@dataclass(frozen=True, slots=True)
class NewReplica:
    """A pod to create, by its role (Master or Worker) and index."""

    role: str
    index: int


@dataclass(frozen=True, slots=True)
class Notice:
    """An event to record."""

    kind: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What to write for a PyTorchJob: its new status, and changes of its pods."""

    status: JsonObject
    create: tuple[NewReplica, ...] = ()
    delete: tuple[str, ...] = ()
    """Names of pods to delete. With `drop_services` the Service of each is deleted too."""
    drop_services: bool = False
    events: tuple[Notice, ...] = ()
    requeue_after_s: float | None = None
    expired: bool = False
    """Whether to delete the job, because its ttlSecondsAfterFinished is over."""


@dataclass(slots=True)
class _Record:
    """Conditions of a job and events about it, as one decision changes them."""

    now: datetime
    conditions: list[JsonObject]
    events: list[Notice] = field(default_factory=list)

    @property
    def has_ended(self) -> bool:
        return self.has("Succeeded") or self.has("Failed")

    def has(self, kind: str) -> bool:
        return any(c["type"] == kind and c["status"] == "True" for c in self.conditions)

    def note(self, kind: str, reason: str, message: str) -> None:
        """Record an event."""
        self.events.append(Notice(kind, reason, message))

    def set(self, kind: str, message: str, *, value: str = "True", reason: str = "") -> None:
        """Set a condition as the training operator does: Running and Restarting exclude each other."""
        known = next((c for c in self.conditions if c["type"] == kind), None)
        why = f"{KIND}{reason or kind}"
        if known is not None and (known["status"], known["reason"]) == (value, why):
            return
        same = known is not None and known["status"] == value
        entry = {
            "type": kind,
            "status": value,
            "reason": why,
            "message": message,
            "lastUpdateTime": timestamp(self.now),
            "lastTransitionTime": known["lastTransitionTime"] if same and known else timestamp(self.now),
        }
        excluded = {"Running": "Restarting", "Restarting": "Running"}.get(kind)
        result = []
        for old in self.conditions:
            if old["type"] in {kind, excluded}:
                continue
            if kind in {"Succeeded", "Failed"} and old["type"] == "Running":
                result.append({**old, "status": "False", "lastTransitionTime": timestamp(self.now)})
            else:
                result.append(old)
        self.conditions = [*result, entry]


def replicas(job: JsonObject) -> list[tuple[str, JsonObject]]:
    """Return the replica specs that are set, the master's first."""
    specs = job["spec"].get("pytorchReplicaSpecs") or {}
    return [(role, specs[role]) for role in ("Master", "Worker") if role in specs]


def is_finished(job: JsonObject) -> bool:
    """Return whether the job has succeeded or failed."""
    return any(
        c["type"] in {"Succeeded", "Failed"} and c["status"] == "True"
        for c in (job.get("status") or {}).get("conditions") or []
    )


def decide(job: JsonObject, pods: list[JsonObject], now: datetime) -> Decision:
    """Decide what follows. A second decision on the result changes nothing.

    Invariant: a finished job starts no pods.
    """
    status: JsonObject = dict(job.get("status") or {})
    record = _Record(now, list(status.get("conditions") or []))
    name = job["metadata"]["name"]
    if not record.conditions:
        record.set("Created", f"{KIND} {name} is created.")
    policy = job["spec"].get("runPolicy") or {}
    if is_finished(job):
        return _clean_up(job, policy, pods, now)
    if policy.get("suspend"):
        return _suspend(job, status, record, pods)
    if record.has("Suspended"):
        record.set("Suspended", f"{KIND} {name} is resumed.", value="False", reason="Resumed")
    if not status.get("startTime"):
        status["startTime"] = timestamp(now)
    failure = _limit_reached(job, policy, pods, parse_time(status["startTime"]), now)
    if failure:
        return _fail(status, record, pods, failure)
    create, delete, restarting = _replace(job, pods, record)
    status["replicaStatuses"] = replica_statuses(job, pods)
    _record_outcome(job, status["replicaStatuses"], record, restarting=restarting)
    status["conditions"] = record.conditions
    wait_s: float | None = None
    if policy.get("activeDeadlineSeconds") is not None:
        end = parse_time(status["startTime"]) + timedelta(seconds=policy["activeDeadlineSeconds"])
        wait_s = (end - now).total_seconds()
    if record.has_ended:
        status["completionTime"] = timestamp(now)
        return Decision(status=status, events=tuple(record.events), requeue_after_s=0.01)
    return Decision(status=status, create=create, delete=delete, events=tuple(record.events), requeue_after_s=wait_s)


def replica_statuses(job: JsonObject, pods: list[JsonObject]) -> JsonObject:
    """Return `status.replicaStatuses`: the pods of each role, counted by phase."""
    result: JsonObject = {}
    for role, _ in replicas(job):
        mine = [p for p in pods if labels_of(p).get(REPLICA_TYPE) == role.lower() and not is_deleting(p)]
        counts = {
            "active": sum(pod_phase(p) == "Running" for p in mine),
            "succeeded": sum(pod_phase(p) == "Succeeded" for p in mine),
            "failed": sum(pod_phase(p) == "Failed" for p in mine),
        }
        selector = f"training.kubeflow.org/job-name={job['metadata']['name']},{REPLICA_TYPE}={role.lower()}"
        result[role] = {**{k: v for k, v in counts.items() if v}, "selector": selector}
    return result


def _replace(
    job: JsonObject, pods: list[JsonObject], record: _Record
) -> tuple[tuple[NewReplica, ...], tuple[str, ...], bool]:
    create: list[NewReplica] = []
    delete: list[str] = []
    restarting = False
    by_place = {(labels_of(p).get(REPLICA_TYPE), labels_of(p).get(REPLICA_INDEX)): p for p in pods}
    for role, spec in replicas(job):
        for index in range(int(spec.get("replicas", 1))):
            pod = by_place.get((role.lower(), str(index)))
            if pod is None:
                create.append(NewReplica(role, index))
            elif spec.get("restartPolicy") == "ExitCode" and pod_phase(pod) == "Failed" and not is_deleting(pod):
                code = exit_code(pod)
                where = f"{pod['metadata']['namespace']}.{pod['metadata']['name']}"
                record.note("Normal", "ExitedWithCode", f"Pod: {where} exited with code {code}")
                if is_retryable(code):
                    delete.append(pod["metadata"]["name"])
                    restarting = True
        limit = int(spec.get("replicas", 1))
        delete.extend(
            p["metadata"]["name"]
            for (kind, place), p in by_place.items()
            if kind == role.lower() and place is not None and int(place) >= limit and not is_deleting(p)
        )
    return tuple(create), tuple(delete), restarting


def exit_code(pod: JsonObject) -> int:
    """Return the exit code of the container named pytorch; 0 if it has none."""
    for container in (pod.get("status") or {}).get("containerStatuses") or []:
        terminated = (container.get("state") or {}).get("terminated")
        if container["name"] == "pytorch" and terminated:
            return int(terminated.get("exitCode", 0))
    return 0


def is_retryable(code: int) -> bool:
    """Return whether restartPolicy ExitCode retries: 1 to 127 is permanent, above that a signal ended the process."""
    return code >= 128


def _record_outcome(job: JsonObject, statuses: JsonObject, record: _Record, *, restarting: bool) -> None:
    """Record what the pods of each role say of the job; `statuses` counts them."""
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    specs = replicas(job)
    leads = "Master" if any(role == "Master" for role, _ in specs) else "Worker"
    for role, spec in specs:
        counts = statuses[role]
        if role == leads:
            if counts.get("active"):
                record.set("Running", f"{KIND} {namespace}/{name} is running.")
            if counts.get("succeeded", 0) >= int(spec.get("replicas", 1)):
                message = f"{KIND} {namespace}/{name} successfully completed."
                record.note("Normal", f"{KIND}Succeeded", message)
                record.set("Succeeded", message)
                return
        if counts.get("failed"):
            if restarting:
                message = (
                    f"{KIND} {namespace}/{name} is restarting because {counts['failed']} {role} replica(s) failed."
                )
                record.note("Warning", f"{KIND}Restarting", message)
                record.set("Restarting", message)
                continue
            message = f"{KIND} {namespace}/{name} is failed because {counts['failed']} {role} replica(s) failed."
            record.note("Normal", f"{KIND}Failed", message)
            record.set("Failed", message)
            return


def _limit_reached(
    job: JsonObject, policy: JsonObject, pods: list[JsonObject], start: datetime, now: datetime
) -> str | None:
    name = job["metadata"]["name"]
    deadline = policy.get("activeDeadlineSeconds")
    if deadline is not None and (now - start).total_seconds() >= deadline:
        return f"Job {name} has failed because it was active longer than specified deadline"
    limit = policy.get("backoffLimit")
    if limit is None:
        return None
    restarted = {r.lower() for r, s in replicas(job) if s.get("restartPolicy", "OnFailure") in {"OnFailure", "Always"}}
    restarts = sum(
        int(container.get("restartCount", 0))
        for pod in pods
        if labels_of(pod).get(REPLICA_TYPE) in restarted and pod_phase(pod) in {"Running", "Pending"}
        for container in (pod.get("status") or {}).get("containerStatuses") or []
    )
    if restarts > 0 and restarts >= limit:
        return f"Job {name} has failed because it has reached the specified backoff limit"
    return None


def _fail(status: JsonObject, record: _Record, pods: list[JsonObject], message: str) -> Decision:
    record.note("Normal", f"{KIND}Failed", message)
    record.set("Failed", message)
    status |= {"conditions": record.conditions, "completionTime": timestamp(record.now)}
    return Decision(
        status=status,
        delete=tuple(p["metadata"]["name"] for p in pods if is_active(p)),
        drop_services=True,
        events=tuple(record.events),
        requeue_after_s=0.01,
    )


def _suspend(job: JsonObject, status: JsonObject, record: _Record, pods: list[JsonObject]) -> Decision:
    name = job["metadata"]["name"]
    if not record.has("Suspended"):
        record.note("Normal", f"{KIND}Suspended", f"{KIND} {name} is suspended.")
    record.set("Suspended", f"{KIND} {name} is suspended.")
    status["conditions"] = [{**c, "status": "False"} if c["type"] == "Running" else c for c in record.conditions]
    status["replicaStatuses"] = {role: {} for role, _ in replicas(job)}
    status.pop("startTime", None)
    return Decision(
        status=status,
        delete=tuple(p["metadata"]["name"] for p in pods if not is_deleting(p)),
        drop_services=True,
        events=tuple(record.events),
    )


def _clean_up(job: JsonObject, policy: JsonObject, pods: list[JsonObject], now: datetime) -> Decision:
    status = dict(job["status"])
    cleaning = policy.get("cleanPodPolicy") or "None"
    doomed: Iterable[JsonObject] = ()
    if cleaning == "All":
        doomed = [p for p in pods if not is_deleting(p)]
    elif cleaning == "Running":
        doomed = [p for p in pods if is_active(p)]
    # The counts of a finished job stay; pods that still run are no longer counted.
    settled = replica_statuses(job, [p for p in pods if is_terminal(p)])
    if pods:
        status["replicaStatuses"] = settled
    ttl = policy.get("ttlSecondsAfterFinished")
    left: float | None = None
    if ttl is not None and status.get("completionTime"):
        left = (parse_time(status["completionTime"]) + timedelta(seconds=ttl) - now).total_seconds()
    return Decision(
        status=status,
        delete=tuple(p["metadata"]["name"] for p in doomed),
        drop_services=cleaning == "All",
        requeue_after_s=left,
        expired=left is not None and left <= 0,
    )
