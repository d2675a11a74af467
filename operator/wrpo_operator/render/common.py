"""Metadata of all children, and the stage's config file as an immutable ConfigMap."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from wrpo_engine.config import ArtifactRef
from wrpo_engine.contract.stage_config import StageConfig
from wrpo_operator.api import names
from wrpo_operator.api.hashing import digest
from wrpo_operator.api.pods import Scheduling
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.plan.model import Experiment, Manifest, PlannedAttempt
from wrpo_operator.plan.placing import described
from wrpo_operator.plan.storage import binding_of

CONFIG_FILE = "stage.json"
PROGRESS_CA_FILE = "progress-ca.crt"


def labels(experiment: Experiment, planned: PlannedAttempt) -> dict[str, str]:
    """Return the labels of a child and its pods."""
    stage = str(planned.node.id)
    return {
        names.LABEL_MANAGED_BY: names.MANAGER,
        names.LABEL_EXPERIMENT: experiment.name,
        names.LABEL_EXPERIMENT_UID: experiment.uid,
        names.LABEL_STAGE: names.stage_label(stage),
        names.LABEL_STAGE_HASH: planned.node.hash,
        names.LABEL_ARTIFACT_KEY: planned.artifact_key,
        names.LABEL_ATTEMPT: str(planned.attempt),
    }


def metadata(experiment: Experiment, planned: PlannedAttempt, name: str) -> dict[str, Any]:
    """Return metadata of an object that is deleted with its experiment."""
    return {
        "name": name,
        "namespace": experiment.namespace,
        "labels": labels(experiment, planned),
        "ownerReferences": [
            {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": experiment.name,
                "uid": experiment.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def child_metadata(
    experiment: Experiment, planned: PlannedAttempt, scheduling: Scheduling, spec: Mapping[str, Any]
) -> dict[str, Any]:
    """Return metadata of a child: labels for Kueue, and the hash of its spec as rendered."""
    meta = metadata(experiment, planned, planned.child_name)
    if scheduling.queue_name:
        meta["labels"][names.LABEL_QUEUE] = scheduling.queue_name
    if scheduling.workload_priority_class_name:
        meta["labels"][names.LABEL_WORKLOAD_PRIORITY] = scheduling.workload_priority_class_name
    meta["annotations"] = {names.ANNOTATION_TEMPLATE_HASH: digest(spec)}
    placement = described(experiment.spec, planned.node) if experiment.spec is not None else None
    if placement is not None:
        text = placement.model_dump_json(by_alias=True, exclude_defaults=True)
        meta["annotations"][names.ANNOTATION_PLACEMENT] = text
    return meta


def stage_config(experiment: Experiment, spec: ExperimentSpec, planned: PlannedAttempt) -> StageConfig:
    """Return the stage's configuration."""
    node = planned.node
    inputs = {
        role: ArtifactRef(stage=str(node.inputs[role]), hash=planned.input_hashes[role]) for role in sorted(node.inputs)
    }
    return StageConfig(
        experiment=f"{experiment.namespace}/{experiment.name}",
        output=ArtifactRef(stage=str(node.id), hash=node.hash),
        inputs=inputs,
        storage=binding_of(spec.storage.chosen).engine,
        params=node.params,
        runtime=node.runtime,
    )


def config_map(
    experiment: Experiment, spec: ExperimentSpec, planned: PlannedAttempt, progress_ca: str | None = None
) -> Manifest:
    """Return the ConfigMap. Its name contains a digest of its content, so it never changes.

    It contains `progress_ca` (PEM) too, because a pod cannot mount objects of the operator's namespace.
    """
    content = stage_config(experiment, spec, planned).file_content()
    data = {CONFIG_FILE: json.dumps(content, indent=2) + "\n"}
    if progress_ca:
        data[PROGRESS_CA_FILE] = progress_ca
    name = f"{planned.child_name}-{hashlib.sha256(''.join(data.values()).encode()).hexdigest()[:8]}"
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(experiment, planned, name),
        "immutable": True,
        "data": data,
    }
