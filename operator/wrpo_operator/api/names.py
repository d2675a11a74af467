"""Names of the resource, its labels and annotations, and the names of children."""

from __future__ import annotations

import hashlib

GROUP = "wrpo.ai"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "WRPOExperiment"
PLURAL = "wrpoexperiments"
SINGULAR = "wrpoexperiment"
SHORT_NAMES = ("wrpo", "wrpos")
CRD_NAME = f"{PLURAL}.{GROUP}"
SWEEP_KIND = "WRPOSweep"
SWEEP_PLURAL = "wrposweeps"
SWEEP_SINGULAR = "wrposweep"
SWEEP_SHORT_NAMES = ("wsweep", "wsweeps")
SWEEP_CRD_NAME = f"{SWEEP_PLURAL}.{GROUP}"

MANAGER = "wrpo-operator"
"""Value of the managed-by label and field manager of every write."""

LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_EXPERIMENT = "wrpo.ai/experiment"
LABEL_EXPERIMENT_UID = "wrpo.ai/experiment-uid"
LABEL_SWEEP = "wrpo.ai/sweep"
LABEL_SWEEP_UID = "wrpo.ai/sweep-uid"
LABEL_VARIANT = "wrpo.ai/variant"
LABEL_SEED = "wrpo.ai/seed"
LABEL_STAGE = "wrpo.ai/stage"
LABEL_STAGE_HASH = "wrpo.ai/stage-hash"
LABEL_ARTIFACT_KEY = "wrpo.ai/artifact-key"
LABEL_ATTEMPT = "wrpo.ai/attempt"
LABEL_EGRESS = "wrpo.ai/egress"
"""`judge` on pods that send requests to a judge's endpoint, for network policies."""
LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
LABEL_WORKLOAD_PRIORITY = "kueue.x-k8s.io/priority-class"
ANNOTATION_REQUIRED_TOPOLOGY = "kueue.x-k8s.io/podset-required-topology"
ANNOTATION_PREFERRED_TOPOLOGY = "kueue.x-k8s.io/podset-preferred-topology"
ANNOTATION_VOLCANO_GROUP = "scheduling.k8s.io/group-name"
LABEL_POD_GROUP = "scheduling.x-k8s.io/pod-group"
ANNOTATION_TEMPLATE_HASH = "wrpo.ai/template-hash"
ANNOTATION_PLACEMENT = "wrpo.ai/placement"
"""JSON: the accelerators of a child's pods, as in the status."""

ANNOTATION_SWEEP_SPEC = "wrpo.ai/sweep-spec"
"""Digest of the spec that a sweep gave an experiment."""
ANNOTATION_SWEEP_SUSPENDED = "wrpo.ai/suspended-by-sweep"
"""Present on an experiment that its sweep, not a user, has suspended."""

TARGET = "target"
"""The reserved source name: the target model's own samples and scores."""

SFT_SYSTEM = "sft"
TRAINED_SYSTEM = "trained"
"""Reserved names of systems: the experiment's own models, besides the target."""
HELD_OUT = "held-out"
"""The reserved name of the benchmark of held-out prompts."""

MAX_CHILD_NAME = 50
MAX_EXPERIMENT_NAME = 63
"""The name is a label value."""
MAX_SOURCE_NAME = 20
MAX_REWARD_NAME = 12
MAIN_REWARD = "main"
"""The reserved name of the first reward."""
REWARD_SEPARATOR = "--"
"""Between source and reward in the name of a stage that scores by an additional reward."""
_MAX_STAGE_IN_CHILD = 28


def stage_label(stage: str) -> str:
    """Return a stage's name as a label value: `sample/qwen` becomes `sample.qwen`."""
    return stage.replace("/", ".")


def stage_from_label(label: str) -> str:
    """Return the stage's name of a label value; source names contain no dots."""
    return label.replace(".", "/", 1)


def child_name(experiment: str, stage: str, stage_hash: str, attempt: int, *, longest: int = MAX_CHILD_NAME) -> str:
    """Name of an attempt's child: `<experiment>-<stage>-<8 digits of hash>-a<attempt>`, at most `longest` characters.

    The same arguments give the same name, so creating a child twice is harmless. An experiment name that is too
    long is changed, and so is one that no Service may start with, because training pods are found by Services. A
    changed name gets 5 digits of its digest, so that two such names differ.
    """
    tail = f"-{_stage_part(stage)}-{stage_hash[:8]}-a{attempt}"
    room = longest - len(tail)
    head = experiment.replace(".", "-")
    if not head[0].isalpha():
        head = f"x{head}"
    if len(head) > room or head != experiment:
        digest = hashlib.sha256(experiment.encode()).hexdigest()[:5]
        head = f"{head[: max(1, room - len(digest) - 1)].rstrip('-')}-{digest}"
    return head + tail


def member_name(sweep: str, variant: str, seed: int | None) -> str:
    """Name of the experiment of a variant: `<sweep>-<variant>[-s<seed>]`; a long one is truncated before 5 digits of
    its digest.
    """
    name = f"{sweep}-{variant}" if seed is None else f"{sweep}-{variant}-s{seed}"
    if len(name) <= MAX_EXPERIMENT_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:5]
    return f"{name[: MAX_EXPERIMENT_NAME - len(digest) - 1].rstrip('-.')}-{digest}"


def _stage_part(stage: str) -> str:
    """Return the stage's part of a child's name."""
    return shortened(stage.replace("/", "-"), _MAX_STAGE_IN_CHILD, unique=stage)


def shortened(text: str, longest: int, *, unique: str | None = None) -> str:
    """Return a text of at most `longest` characters; a longer one is truncated and made unique by 5 digits of the
    digest of `unique`, or of the text itself.
    """
    if len(text) <= longest:
        return text
    digest = hashlib.sha256((unique or text).encode()).hexdigest()[:5]
    return f"{text[: longest - len(digest) - 1].rstrip('-')}-{digest}"
