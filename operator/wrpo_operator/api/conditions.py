"""Every condition type, reason and message of the status, of its blockers, and of events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

from wrpo_operator.api.backends import BACKENDS


class ConditionType(StrEnum):
    """Types of status.conditions; all are always there."""

    ACCEPTED = "Accepted"
    PROGRESSING = "Progressing"
    BLOCKED = "Blocked"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SOURCES_DEGRADED = "SourcesDegraded"
    """Sources that failed for good were left out, as spec.sampling.onSourceFailure allows."""


class Reason(StrEnum):
    """Reasons of conditions, blockers and events."""

    VALID = "Valid"
    INVALID_SPEC = "InvalidSpec"

    STAGES_RUNNING = "StagesRunning"
    WAITING = "Waiting"
    FINISHED = "Finished"
    NOT_FINISHED = "NotFinished"
    DELETING = "Deleting"

    SUSPENDED = "SuspendedByUser"
    NOT_SUSPENDED = "NotSuspended"
    RESUMED = "Resumed"

    NOTHING_BLOCKS = "NothingBlocks"
    UNSCHEDULABLE = "Unschedulable"
    SCHEDULING_GATED = "SchedulingGated"
    NO_SCHEDULER = "NoScheduler"
    POD_LOST = "PodLost"
    IMAGE_PULL = "ImagePullFailed"
    CONTAINER_CONFIG = "ContainerConfigError"
    MISSING_OBJECT = "MissingObject"
    BACKEND_MISSING = "TrainingBackendMissing"
    ARTIFACT_BUSY = "ArtifactBeingMade"
    RETRY_WAIT = "WaitingForRetry"
    PREVIOUS_ATTEMPT = "PreviousAttemptRunning"
    API_REFUSED = "ApiRefused"
    NAME_TAKEN = "NameTaken"
    STATUS_REFUSED = "StatusRefused"
    NAMESPACE_TERMINATING = "NamespaceTerminating"
    QUEUED = "Queued"
    CRASH_LOOP = "CrashLooping"
    CLAIM_PENDING = "ClaimPending"
    INIT_WAITING = "InitContainerWaiting"
    PROGRESS_STALLED = "ProgressStalled"
    GANG_UNPROTECTED = "GangSchedulingMissing"

    QUOTA_EXCEEDED = "QuotaExceeded"
    POD_SECURITY = "PodSecurityViolation"
    ADMISSION_DENIED = "AdmissionDenied"
    PODS_REFUSED = "PodsRefused"

    MOUNT_FAILED = "FailedMount"
    ATTACH_FAILED = "FailedAttachVolume"
    SANDBOX_FAILED = "FailedCreatePodSandBox"

    WAITING_FOR_QUOTA = "WaitingForQuota"
    WAITING_FOR_CHECKS = "WaitingForAdmissionChecks"
    PREEMPTED = "Preempted"
    PODS_READY_TIMEOUT = "PodsReadyTimeout"
    EVICTED_BY_QUEUE = "EvictedByQueue"
    INADMISSIBLE = "Inadmissible"
    WORKLOAD_INACTIVE = "WorkloadInactive"

    ALL_SOURCES_USED = "AllSourcesUsed"
    SOURCE_FAILED = "SourceFailed"

    ALL_STAGES_SUCCEEDED = "AllStagesSucceeded"
    NO_FAILURE = "NoFailure"
    STAGE_FAILED = "StageFailed"
    RETRIES_EXHAUSTED = "RetriesExhausted"
    PENDING_TOO_LONG = "PendingTooLong"
    RAN_TOO_LONG = "RanTooLong"
    SAME_ERROR = "SameErrorAgain"

    STAGE_STARTED = "StageStarted"
    STAGE_SUCCEEDED = "StageSucceeded"
    STAGE_RETRIED = "StageRetried"
    STAGE_RERUN = "StageChanged"
    REWARD_DIVERGENCE = "RewardDivergence"


MERE_WAITS = frozenset(
    {
        Reason.QUEUED,
        Reason.RETRY_WAIT,
        Reason.ARTIFACT_BUSY,
        Reason.WAITING_FOR_QUOTA,
        Reason.WAITING_FOR_CHECKS,
        Reason.PREEMPTED,
        Reason.PODS_READY_TIMEOUT,
        Reason.EVICTED_BY_QUEUE,
    }
)
"""Reasons of blockers that pass by themselves, however long it takes: nobody has to be called."""


def accepted() -> str:
    return "The spec is valid."


def invalid(errors: tuple[str, ...]) -> str:
    return " ".join(errors)


def running(stages: tuple[str, ...]) -> str:
    return f"Running {', '.join(stages)}."


def waiting(stages: tuple[str, ...]) -> str:
    return f"Waiting to run {', '.join(stages)}." if stages else "Waiting for stages to stop."


def not_accepted_yet() -> str:
    return "Nothing starts until the spec is valid."


def finished(phase: str) -> str:
    return f"The experiment has {phase.lower()}."


def deleting() -> str:
    return "The experiment is being deleted and a finalizer still holds it: nothing new starts."


def not_finished() -> str:
    return "The experiment has not ended."


def suspended() -> str:
    return "spec.suspend is true: nothing starts, and what ran has been stopped. Set it to false to go on."


def not_suspended() -> str:
    return "spec.suspend is false."


def nothing_blocks() -> str:
    return "Nothing keeps the experiment from going on."


def succeeded(stages: int) -> str:
    return f"All {stages} stages have succeeded."


def all_sources_used() -> str:
    return "No source is left out."


def sources_lost(failures: Mapping[str, str]) -> str:
    """`failures` are the words of the failed stages by source."""
    names = ", ".join(failures)
    return f"Going on without {names}: {' '.join(failures.values())} Edit the spec to try again."


def no_failure() -> str:
    return "No stage has failed for good."


def stage_failed(stage: str, attempt: int, failed: int, limit: int, words: str) -> str:
    """`words` are the engine's own where there are any."""
    tries = (
        f"attempt {attempt}"
        if failed <= 1
        else f"attempt {attempt}; {failed} failures, and spec.retries.limit is {limit}"
    )
    return f"Stage {stage} failed ({tries}): {words}"


def engine_error(code: str, field: str | None, message: str, hint: str | None) -> str:
    """Return the error of a termination message in one line."""
    where = f" (spec.{field.removeprefix('spec.')})" if field else ""
    return f"{code}{where}: {message}" + (f" {hint}" if hint else "")


def exited(code: int | None, tail: str, pod: str, namespace: str = "") -> str:
    """Return a pod that ended without saying why."""
    how = f"pod {pod} exited with code {code}" if code is not None else f"pod {pod} failed"
    why = {
        137: " (killed: out of memory, or by the node)",
        143: " (terminated)",
        139: " (segmentation fault)",
        126: " (the command cannot be executed)",
        127: " (the command does not exist in the image; check spec.images)",
        75: " (a temporary error: storage or network)",
    }.get(code or 0, "")
    said = f"; its last words: {tail}" if tail else ""
    return f"{how}{why}{said}. See `kubectl logs {pod}{f' -n {namespace}' if namespace else ''}`."


def out_of_memory(pod: str) -> str:
    return (
        f"pod {pod} was killed for using more memory than its limit (OOMKilled). Raise the limit in spec.resources, or "
        "lower what the stage holds at a time (training.microBatchTokens, reward.batchTokens, sampling.maxModelLength)."
    )


def over_limit(pod: str, words: str) -> str:
    """`words` are the kubelet's."""
    return (
        f"pod {pod} was evicted for using more local storage than its own limits allow: {words.rstrip('. ')}. Raise "
        "limits of ephemeral-storage in spec.resources, or the sizeLimit of the volume."
    )


def same_error(step: int) -> str:
    return f"The same error came twice at step {step}, so that trying again would not help: "


def child_failed(child: str, reason: str, message: str) -> str:
    """Return a child that failed although no pod tells why."""
    return f"{child} failed: {reason or 'no reason given'}{': ' + message if message else ''}."


def pending_too_long(seconds: int, field: str, why: str) -> str:
    return f"no pod ran within {seconds} s ({field}). {why or 'The cluster gave no reason.'}"


def ran_too_long(seconds: int, field: str) -> str:
    return (
        f"it ran for more than {seconds} s ({field}) and was ended. Its parts and checkpoints are kept; raise the "
        "deadline if it needs more time."
    )


def unschedulable(words: str) -> str:
    return f"No node takes the pod: {words} Change spec.resources or spec.scheduling, or wait for room."


def scheduling_gated(gates: Sequence[str]) -> str:
    return (
        f"The pod is not scheduled until these scheduling gates are removed: {', '.join(gates)}. "
        "Start the controller that removes them, or remove them from spec.podTemplate."
    )


def no_scheduler(scheduler: str, claims: Sequence[str], seconds: int) -> str:
    if claims:
        return (
            f"No scheduler has looked at the pod for {seconds} s. It needs the resource claims {', '.join(claims)}: "
            "create those that are missing, or change resourceClaims in spec.podTemplate."
        )
    return (
        f"No scheduler has looked at the pod for {seconds} s. It asks for the scheduler `{scheduler}`: "
        "start it, or name one that runs in spec.scheduling.schedulerName."
    )


def pod_lost(pod: str, node: str) -> str:
    return (
        f"Pod {pod} on node {node} is being deleted and does not end, so no other pod is created in its place: the "
        f"node is lost or cannot stop it. If the node is gone, `kubectl delete pod {pod} --force`; the attempt then "
        "continues on another node."
    )


def image_pull(words: str) -> str:
    return f"The image cannot be pulled: {words} Check spec.images and spec.imagePullSecrets."


def container_config(words: str) -> str:
    return f"The container cannot be made: {words} Check that the Secrets named in spec.env and spec.storage exist."


def crash_loop(words: str) -> str:
    return f"The container ends again and again: {words} See the pod's logs."


def claim_pending(name: str, storage_class: str) -> str:
    made_by = f"storage class `{storage_class}`" if storage_class else "the default storage class"
    return (
        f"Claim `{name}` is not bound yet ({made_by}). `kubectl describe pvc {name}` says what its provisioner waits "
        "for."
    )


def init_waiting(minutes: int) -> str:
    return (
        f"An init container has been running for {minutes} min. A worker's waits until the master's name resolves: "
        "look whether the master pod runs and cluster DNS works."
    )


def progress_stalled(stage: str, percent: float, minutes: int) -> str:
    return (
        f"Stage {stage} has been at {percent:.0f}% for more than {minutes} min although its pods run. Look at their "
        "logs; deadlines.activeSeconds ends an attempt that hangs."
    )


def gang_unprotected(nodes: int) -> str:
    return (
        f"The stage needs {nodes} pods at once, and nothing makes the cluster start all or none of them: two such "
        "gangs could wait for each other for ever. Set scheduling.queueName (Kueue), scheduling.podGroup (Volcano or "
        "scheduler-plugins), or accept it by scheduling.gang: BestEffort."
    )


def noted(reason: Reason, words: str) -> str:
    """Return what a controller or a queue says of a child, with the remedy."""
    remedy = {
        Reason.QUOTA_EXCEEDED: "Free quota, raise the ResourceQuota or lower spec.resources.",
        Reason.POD_SECURITY: (f"Let the namespace admit the pod, or change spec.podTemplate. {_init_containers()}"),
        Reason.ADMISSION_DENIED: "The webhook's owner can say what it wants; spec.podTemplate changes the pod.",
        Reason.MOUNT_FAILED: (
            "Create the Secret, ConfigMap or claim it names, or change the volume in spec.podTemplate or spec.storage; "
            "the pod then starts by itself."
        ),
        Reason.ATTACH_FAILED: (
            "A claim that one node holds cannot be used on another: use a ReadWriteMany claim, or wait until that node "
            "lets go of it."
        ),
        Reason.SANDBOX_FAILED: (
            "The node cannot set up the pod, its network mostly: tell who runs the nodes, or keep off this one by "
            "spec.scheduling.nodeSelector."
        ),
        Reason.WAITING_FOR_QUOTA: (
            "It starts when the queue has room; `kubectl describe clusterqueue` shows who holds it."
        ),
        Reason.PREEMPTED: "It goes on by itself when the queue has room again; no retry is used up.",
        Reason.PODS_READY_TIMEOUT: "Not all of its pods were ready in time; look why they do not start.",
    }.get(reason, "")
    if reason is Reason.QUOTA_EXCEEDED and "must specify" in words:
        remedy = "The quota needs a value for each of them: set them in spec.resources."
    return f"{sentence(words)} {remedy}".strip()


def _init_containers() -> str:
    """Return which init containers a training backend adds by itself, and which backends add none."""
    others = " or ".join(backend.kind for backend in BACKENDS.values() if not backend.init_container)
    return " ".join(
        f"An init container `{backend.init_container}` is {backend.kind}'s own; training.backend: {others} does "
        "without it."
        for backend in BACKENDS.values()
        if backend.init_container
    )


def missing_object(kind: str, name: str) -> str:
    return f"{kind} `{name}` does not exist in the experiment's namespace. Create it; the rest then follows by itself."


def backend_missing(backend: str, installed: Iterable[str]) -> str:
    product = BACKENDS[backend].product
    others = ", ".join(sorted(installed))
    instead = f" Or set training.backend to what is installed: {others}." if others else ""
    return f"The cluster does not know kind {backend}. Install {product}; the rest follows by itself.{instead}"


def orphan_busy(stage: str, kind: str, name: str) -> str:
    return (
        f"{kind} `{name}` of a deleted experiment of the same name is still creating the artifact of {stage}; the "
        f"artifact is used when it is there. To stop it instead: `kubectl delete {kind.lower()} {name}`."
    )


def artifact_busy(stage: str, experiment: str) -> str:
    return f"Experiment `{experiment}` is making the same artifact of {stage}; it will be used when it is there."


def sentence(text: str) -> str:
    """Return words of the cluster with a full stop."""
    text = text.strip()
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def api_refused(kind: str, words: str) -> str:
    """`words` are the API server's."""
    return f"The API server refuses the {kind}: {sentence(words)} It is tried again until the server accepts it."


def template_refused(kind: str, words: str) -> str:
    """`words` are the API server's, with the user's paths."""
    return (
        f"The API server cannot accept the {kind} that the spec asks for: {sentence(words)} Correct the fields it "
        "names (spec.podTemplate, spec.resources, spec.env or spec.scheduling); the stage then starts."
    )


def name_taken(kind: str, name: str, namespace: str, words: str) -> str:
    """`words` are the API server's."""
    return (
        f"{kind} `{name}` exists already and was not created for this attempt. Delete it: `kubectl delete "
        f"{kind.lower()} {name} -n {namespace}`; the stage then starts. The API server says: {sentence(words)}"
    )


def status_refused(words: str) -> str:
    """`words` are the API server's."""
    return (
        f"The API server does not store the experiment's status: {sentence(words)} If the experiment is near the size "
        "that the server takes (1.5 MB), make spec.podTemplate smaller."
    )


def namespace_terminating(namespace: str) -> str:
    return f"Namespace `{namespace}` is being deleted, so nothing can be created in it."


def previous_attempt(stage: str, pod: str) -> str:
    return (
        f"Pod {pod} of an earlier attempt of {stage} has not ended yet and may still write; the next attempt starts "
        "when it has. If its node is gone, delete the pod."
    )


def retry_wait(stage: str, at: str) -> str:
    return f"Stage {stage} starts again at {at}."


def skipped(stage: str) -> str:
    return f"Not run, for stage {stage} failed."


def stopped(stage: str) -> str:
    return f"Stopped, for stage {stage} failed; it goes on when the spec is edited."


def event_stage_started(stage: str, attempt: int, child: str) -> str:
    return f"Started stage {stage} (attempt {attempt}) as {child}."


def event_stage_succeeded(stage: str, *, cached: bool) -> str:
    return f"Stage {stage} has succeeded{'; its artifact was there already' if cached else ''}."


def event_stage_retried(stage: str, attempt: int, words: str) -> str:
    return f"Attempt {attempt} of stage {stage} ended: {words}"


def event_stage_changed(stage: str) -> str:
    return f"Stage {stage} runs again, for the spec or a stage before it has changed."


def event_reward_divergence(experiment: str, stage: str, attempt: int) -> str:
    return (
        f"Stage {stage} of experiment {experiment} (attempt {attempt}) diverges: the chosen responses become "
        "improbable while the margin still grows, so the loss looks well although the model gets worse. Lower "
        "training.learningRate, raise training.beta (IPO: training.tau), add the likelihood term (training.nllWeight), "
        f"or stop early by training.holdout.patience. `wrpo logs {experiment} {stage}` names the step."
    )


def queued(queue: str) -> str:
    return f"Waits for admission by Kueue queue `{queue}`. `kubectl describe workload` says what it lacks."


def more_pods(words: str, more: int) -> str:
    return f"{words} ({more} more pods of the stage say the same.)" if more else words


def disrupted(pod: str, node: str | None) -> str:
    where = f" on node {node}" if node else ""
    return f"pod {pod}{where} was taken by the cluster (preemption, eviction or node loss); no retry is used up."
