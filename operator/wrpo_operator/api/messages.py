"""Messages of conditions, stages and blockers: one function each.

A message says what happened, the value, the rule and the next step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from wrpo_operator.api.backends import BACKENDS
from wrpo_operator.api.conditions import Reason


def accepted() -> str:
    """Return the message of a valid spec."""
    return "The spec is valid."


def invalid(errors: tuple[str, ...]) -> str:
    """Return the message of an invalid spec; each error is a sentence."""
    return " ".join(errors)


def running(stages: tuple[str, ...]) -> str:
    """Return the message of an experiment with running stages."""
    return f"Running {', '.join(stages)}."


def waiting(stages: tuple[str, ...]) -> str:
    """Return the message of an experiment of which no stage runs; `stages` are those that wait."""
    return f"Waiting to run {', '.join(stages)}." if stages else "Waiting for stages to stop."


def not_accepted_yet() -> str:
    """Return the message of an experiment whose spec is invalid."""
    return "Nothing starts until the spec is valid."


def finished(phase: str) -> str:
    """Return the message of an experiment that has ended."""
    return f"The experiment has {phase.lower()}."


def deleting() -> str:
    """Return the message of an experiment that is being deleted."""
    return "The experiment is being deleted and waits for a finalizer; no stage starts."


def not_finished() -> str:
    """Return the message of an experiment that has not ended."""
    return "The experiment has not ended."


def suspended() -> str:
    """Return the message of a suspended experiment."""
    return "spec.suspend is true: running stages were stopped and no stage starts. Set it to false to resume."


def not_suspended() -> str:
    """Return the message of an experiment that is not suspended."""
    return "spec.suspend is false."


def nothing_blocks() -> str:
    """Return the message of an experiment without blockers."""
    return "Nothing blocks the experiment."


def succeeded(stages: int) -> str:
    """Return the message of an experiment that succeeded."""
    return f"All {stages} stages have succeeded."


def all_sources_used() -> str:
    """Return the message of an experiment that uses all sources."""
    return "All sources are used."


def sources_lost(failures: Mapping[str, str]) -> str:
    """Return the message about excluded sources; `failures` maps a source to the message of its failed stage."""
    names = ", ".join(failures)
    return f"Continuing without {names}: {' '.join(failures.values())} Edit the spec to retry."


def warned(warnings: Sequence[str]) -> str:
    """Return the message about what looks like a mistake; each warning is a sentence."""
    return " ".join(warnings)


def nothing_suspicious() -> str:
    """Return the message of an experiment without warnings."""
    return "Nothing looks like a mistake."


def no_failure() -> str:
    """Return the message of an experiment without a final failure."""
    return "No stage has failed permanently."


def stage_failed(stage: str, attempt: int, failed: int, limit: int, cause: str) -> str:
    """Return the final failure of a stage; `cause` is the engine's error if there is one."""
    tries = (
        f"attempt {attempt}"
        if failed <= 1
        else f"attempt {attempt}; {failed} failures, and spec.retries.limit is {limit}"
    )
    return f"Stage {stage} failed ({tries}): {cause}"


def engine_error(code: str, field: str | None, message: str, hint: str | None) -> str:
    """Return the error of a termination message in one line."""
    where = f" (spec.{field.removeprefix('spec.')})" if field else ""
    return f"{code}{where}: {message}" + (f" {hint}" if hint else "")


def exited(code: int | None, tail: str, pod: str, namespace: str = "") -> str:
    """Return the failure of a pod that reported no error; `tail` is the end of its log."""
    how = f"pod {pod} exited with code {code}" if code is not None else f"pod {pod} failed"
    why = {
        137: " (killed: out of memory, or by the node)",
        143: " (terminated)",
        139: " (segmentation fault)",
        126: " (the command cannot be executed)",
        127: " (the command does not exist in the image; check spec.images)",
        75: " (a temporary error: storage or network)",
    }.get(code or 0, "")
    said = f"; last output: {tail}" if tail else ""
    return f"{how}{why}{said}. See `kubectl logs {pod}{f' -n {namespace}' if namespace else ''}`."


def out_of_memory(pod: str) -> str:
    """Return the failure of a pod that exceeded its memory limit."""
    return (
        f"pod {pod} was killed for using more memory than its limit (OOMKilled). Raise the limit in spec.resources, or "
        "lower what the stage holds in memory (training.microBatchTokens, reward.batchTokens, sampling.maxModelLength)."
    )


def over_limit(pod: str, detail: str) -> str:
    """Return the eviction of a pod that exceeded its own limits; `detail` is the kubelet's message."""
    return (
        f"pod {pod} was evicted for using more local storage than its own limits allow: {detail.rstrip('. ')}. Raise "
        "the limit of ephemeral-storage in spec.resources, or the sizeLimit of the volume."
    )


def same_error(step: int) -> str:
    """Return the prefix of a failure that is final because it repeated at the same optimizer step."""
    return f"The same error occurred twice at step {step}, so it is not retried: "


def child_failed(child: str, reason: str, message: str) -> str:
    """Return the failure of a child of which no pod reports the cause."""
    return f"{child} failed: {reason or 'no reason given'}{': ' + message if message else ''}."


def pending_too_long(seconds: int, field: str, why: str) -> str:
    """Return the failure of an attempt of which no pod ran within the deadline of `field`."""
    return f"no pod ran within {seconds} s ({field}). {why or 'The cluster reported no reason.'}"


def ran_too_long(seconds: int, field: str) -> str:
    """Return the failure of an attempt that ran past the deadline of `field`."""
    return (
        f"exceeded {field} ({seconds} s) and was terminated. Its parts and checkpoints are kept. Raise the deadline if "
        "the stage needs more time."
    )


def unschedulable(detail: str) -> str:
    """Return the blocker of an unschedulable pod; `detail` is the scheduler's message."""
    return f"No node fits the pod: {detail} Change spec.resources or spec.scheduling, or wait for free capacity."


def accelerators_gone(accelerator: str, child: str) -> str:
    """Return the beginning of the blocker of pods whose accelerators have left the cluster."""
    return (
        f"The cluster no longer has {accelerator}, which was chosen for this attempt. Delete {child} to choose again, "
        "or wait for such nodes."
    )


def scheduling_gated(gates: Sequence[str]) -> str:
    """Return the blocker of a pod with scheduling gates."""
    return (
        f"The pod is not scheduled until these scheduling gates are removed: {', '.join(gates)}. "
        "Start the controller that removes them, or remove them from spec.podTemplate."
    )


def no_scheduler(scheduler: str, claims: Sequence[str], seconds: int) -> str:
    """Return the blocker of a pod that no scheduler has processed for `seconds`."""
    if claims:
        return (
            f"No scheduler has processed the pod for {seconds} s. It needs the resource claims {', '.join(claims)}: "
            "create the missing ones, or change resourceClaims in spec.podTemplate."
        )
    return (
        f"No scheduler has processed the pod for {seconds} s. It requests the scheduler `{scheduler}`: "
        "start it, or set spec.scheduling.schedulerName to one that runs."
    )


def pod_lost(pod: str, node: str) -> str:
    """Return the blocker of a pod that does not terminate because its node is lost."""
    return (
        f"Pod {pod} on node {node} is being deleted but does not terminate, so no replacement is created: the node is "
        f"lost or cannot stop it. If the node is gone, `kubectl delete pod {pod} --force`; the attempt then "
        "continues on another node."
    )


def image_pull(detail: str) -> str:
    """Return the blocker of an image that cannot be pulled; `detail` is the kubelet's message."""
    return f"The image cannot be pulled: {detail} Check spec.images and spec.imagePullSecrets."


def container_config(detail: str) -> str:
    """Return the blocker of a container that cannot be created; `detail` is the kubelet's message."""
    return f"The container cannot be created: {detail} Check that the Secrets named in spec.env and spec.storage exist."


def crash_loop(detail: str) -> str:
    """Return the blocker of a container in CrashLoopBackOff; `detail` is the kubelet's message."""
    return f"The container exits repeatedly: {detail} See the pod's logs."


def claim_pending(name: str, storage_class: str) -> str:
    """Return the blocker of a claim that is not bound; an empty class is the cluster's default."""
    made_by = f"storage class `{storage_class}`" if storage_class else "the default storage class"
    return (
        f"Claim `{name}` is not bound yet ({made_by}). `kubectl describe pvc {name}` shows what its provisioner waits "
        "for."
    )


def init_waiting(minutes: int) -> str:
    """Return the blocker of an init container that runs for a long time."""
    return (
        f"An init container has been running for {minutes} min. A worker's waits until the master's name resolves: "
        "check that the master pod runs and that cluster DNS works."
    )


def progress_stalled(stage: str, percent: float, minutes: int) -> str:
    """Return the blocker of a stage whose pods run without progress."""
    return (
        f"Stage {stage} has been at {percent:.0f}% for more than {minutes} min although its pods run. Check their "
        "logs; deadlines.activeSeconds terminates an attempt that hangs."
    )


def gang_unprotected(nodes: int) -> str:
    """Return the blocker of a gang that nothing schedules as a whole."""
    return (
        f"The stage needs {nodes} pods at once, and nothing makes the cluster start all or none of them: two such "
        "gangs could wait for each other forever. Set scheduling.queueName (Kueue) or scheduling.podGroup (Volcano or "
        "scheduler-plugins), or accept the risk with scheduling.gang: BestEffort."
    )


def model_does_not_fit(stage: str, why: str) -> str:
    """Return the blocker of a stage whose model fits on no accelerators; `why` is a sentence with the remedies."""
    return f"Stage {stage} is not started: {sentence(why)}"


def exceeds_max_gpus(stage: str, needed: int, most: int) -> str:
    """Return the blocker of a stage that scheduling.maxGpus can never admit."""
    return (
        f"Stage {stage} requests {needed} accelerators, and scheduling.maxGpus allows {most} at the same time. Raise "
        "maxGpus, or lower its shards, nodes or accelerators per pod."
    )


def accelerators_in_use(needed: int) -> str:
    """Return the message of a stage that waits until other stages of the experiment free accelerators."""
    return f"Waiting for {needed} accelerators that other stages of this experiment use."


def facts_awaited(stage: str) -> str:
    """Return the message of a stage that waits for the size of its model."""
    return f"Waiting for the size of the model that {stage} reports."


def noted(reason: Reason, detail: str) -> str:
    """Return the message of a controller or a queue about a child, followed by the remedy."""
    remedy = {
        Reason.QUOTA_EXCEEDED: "Free quota, raise the ResourceQuota or lower spec.resources.",
        Reason.POD_SECURITY: f"Allow the pod in the namespace, or change spec.podTemplate. {_init_containers()}",
        Reason.ADMISSION_DENIED: "Ask the webhook's owner what it requires; spec.podTemplate changes the pod.",
        Reason.MOUNT_FAILED: (
            "Create the Secret, ConfigMap or claim it names, or change the volume in spec.podTemplate or spec.storage; "
            "the pod then starts without further action."
        ),
        Reason.ATTACH_FAILED: (
            "A claim that is attached to one node cannot be used on another: use a ReadWriteMany claim, or wait until "
            "that node releases it."
        ),
        Reason.SANDBOX_FAILED: (
            "The node cannot set up the pod, usually its network: contact the cluster administrator, or exclude the "
            "node with spec.scheduling.nodeSelector."
        ),
        Reason.WAITING_FOR_QUOTA: (
            "It starts when the queue has free quota; `kubectl describe clusterqueue` shows which workloads use it."
        ),
        Reason.PREEMPTED: "It resumes automatically when the queue has free quota again; no retry is used up.",
        Reason.PODS_READY_TIMEOUT: "Not all of its pods were ready in time; check why they do not start.",
    }.get(reason, "")
    if reason is Reason.QUOTA_EXCEEDED and "must specify" in detail:
        remedy = "The quota needs a value for each of them: set them in spec.resources."
    return f"{sentence(detail)} {remedy}".strip()


def _init_containers() -> str:
    """Return which init containers a training backend adds, and which backends add none."""
    others = " or ".join(backend.kind for backend in BACKENDS.values() if not backend.init_container)
    return " ".join(
        f"{backend.kind} adds the init container `{backend.init_container}`; training.backend: {others} does not."
        for backend in BACKENDS.values()
        if backend.init_container
    )


def missing_object(kind: str, name: str) -> str:
    """Return the blocker of a referenced object that does not exist."""
    return f"{kind} `{name}` does not exist in the experiment's namespace. Create it; the experiment then continues."


def backend_missing(backend: str, installed: Iterable[str]) -> str:
    """Return the blocker of a training backend whose CRD is not installed; `installed` are the kinds that are."""
    product = BACKENDS[backend].product
    others = ", ".join(sorted(installed))
    instead = f" Or set training.backend to an installed one: {others}." if others else ""
    return f"The cluster does not know kind {backend}. Install {product}; the experiment then continues.{instead}"


def orphan_busy(stage: str, kind: str, name: str) -> str:
    """Return the blocker of an artifact that a child of a deleted experiment still writes."""
    return (
        f"{kind} `{name}` of a deleted experiment of the same name is still creating the artifact of {stage}; the "
        f"artifact is used once it is complete. To stop it instead: `kubectl delete {kind.lower()} {name}`."
    )


def artifact_busy(stage: str, experiment: str) -> str:
    """Return the blocker of an artifact that another experiment creates."""
    return f"Experiment `{experiment}` is creating the same artifact of {stage}; it is used once it is complete."


def sentence(text: str) -> str:
    """Return a message of the cluster with a full stop."""
    text = text.strip()
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def api_refused(kind: str, detail: str) -> str:
    """Return the blocker of a request that the API server rejects; `detail` is its message."""
    return f"The API server refuses the {kind}: {sentence(detail)} The request is retried until it is accepted."


def template_refused(kind: str, detail: str) -> str:
    """Return the blocker of a child that the spec makes invalid; `detail` names the fields of the spec."""
    return (
        f"The API server cannot accept the {kind} that the spec requests: {sentence(detail)} Correct the fields it "
        "names (spec.podTemplate, spec.resources, spec.env or spec.scheduling); the stage then starts."
    )


def name_taken(kind: str, name: str, namespace: str, detail: str) -> str:
    """Return the blocker of an object whose name is taken; `detail` is the API server's message."""
    return (
        f"{kind} `{name}` already exists and was not created for this attempt. Delete it: `kubectl delete "
        f"{kind.lower()} {name} -n {namespace}`; the stage then starts. The API server says: {sentence(detail)}"
    )


def status_refused(detail: str) -> str:
    """Return the blocker of a status that the API server rejects; `detail` is its message."""
    return (
        f"The API server does not store the experiment's status: {sentence(detail)} If the experiment is near the size "
        "limit of the server (1.5 MB), make spec.podTemplate smaller."
    )


def namespace_terminating(namespace: str) -> str:
    """Return the blocker of a namespace that is being deleted."""
    return f"Namespace `{namespace}` is being deleted, so nothing can be created in it."


def previous_attempt(stage: str, pod: str) -> str:
    """Return the blocker of an attempt that waits for a pod of an earlier one."""
    return (
        f"Pod {pod} of an earlier attempt of {stage} has not terminated yet and may still write; the next attempt "
        "starts when it has. If its node is gone, delete the pod."
    )


def retry_wait(stage: str, at: str) -> str:
    """Return the blocker of a stage that waits for its next attempt."""
    return f"Stage {stage} starts again at {at}."


def skipped(stage: str) -> str:
    """Return the message of a stage that does not run because an earlier one failed."""
    return f"Skipped: stage {stage} failed."


def stopped(stage: str) -> str:
    """Return the message of a running stage that was stopped because another one failed."""
    return f"Stopped because stage {stage} failed. Edit the spec to resume."


def queued(queue: str) -> str:
    """Return the blocker of a child that Kueue has not admitted."""
    return f"Waiting for admission by Kueue queue `{queue}`. `kubectl describe workload` shows what is missing."


def more_pods(message: str, more: int) -> str:
    """Return the message of one pod with the number of other pods that it is true of."""
    return f"{message} (The same is true of {more} more pods of the stage.)" if more else message


def disrupted(pod: str, node: str | None) -> str:
    """Return the failure of a pod that the cluster terminated."""
    where = f" on node {node}" if node else ""
    return f"pod {pod}{where} was terminated by the cluster (preemption, eviction or node loss); no retry is used up."
