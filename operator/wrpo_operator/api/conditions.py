"""Types of conditions, and reasons of conditions, blockers and events."""

from __future__ import annotations

from enum import StrEnum


class ConditionType(StrEnum):
    """Types of status.conditions; the status always holds all of them."""

    ACCEPTED = "Accepted"
    PROGRESSING = "Progressing"
    BLOCKED = "Blocked"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SOURCES_DEGRADED = "SourcesDegraded"
    """True while the experiment runs without sources that failed permanently (spec.sampling.onSourceFailure)."""
    WARNED = "Warned"
    """True while something about the experiment looks like a mistake. It prevents nothing."""


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
    JUDGE_UNREACHABLE = "JudgeUnreachable"
    JUDGE_QUOTA_EXCEEDED = "JudgeQuotaExceeded"
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

    MODEL_DOES_NOT_FIT = "ModelDoesNotFit"
    EXCEEDS_MAX_GPUS = "ExceedsMaxGpus"
    GPUS_IN_USE = "AcceleratorsInUse"
    FACTS_AWAITED = "ModelFactsAwaited"

    SUSPICIOUS_SPEC = "SuspiciousSpec"
    NOTHING_SUSPICIOUS = "NothingSuspicious"

    ALL_SOURCES_USED = "AllSourcesUsed"
    SOURCE_FAILED = "SourceFailed"

    EXPERIMENTS_RUNNING = "ExperimentsRunning"
    EXPERIMENT_REFUSED = "ExperimentRefused"
    ALL_VARIANTS_SUCCEEDED = "AllVariantsSucceeded"
    VARIANTS_FAILED = "VariantsFailed"

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
"""Reasons of blockers that resolve without intervention, regardless of how long they last."""
